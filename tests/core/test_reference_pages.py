"""The reference pages name what the code has: a verifier, or a program, is written from the page alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lattice import schemas
from lattice.core import identity
from lattice.core.proofs import KeyProof, ProofValue, ProofVersion, Statement, proof_fields
from lattice.core.receipts import Receipt, ReceiptStatement, Step, receipt_fields
from tests.core.core_kit import node_key

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
SIGNER = node_key(1).public_key
LIVE = (ProofVersion(bytes(32), 0, bytes(32), bytes(127)),)


def section(page: str, number: int) -> str:
    text = (REFERENCE / f"{page}.md").read_text("utf-8")
    found = re.search(rf"(?ms)^## {number}\. .*?(?=^## |\Z)", text)
    assert found, f"{page}.md has no section {number}"
    return found.group()


def names(data: Any) -> set[str]:
    """The names of all fields of a JSON form, at every level."""
    if isinstance(data, dict):
        return set(data).union(*map(names, data.values()))
    return set().union(*map(names, data)) if isinstance(data, list) else set()


def test_every_kind_of_signature_is_listed() -> None:
    tags = {value for name, value in vars(identity).items() if name.endswith("_TAG")}
    assert len(tags) >= 4
    table = section("wire", 2)
    assert {tag for tag in tags if f'"{tag[:-1].decode()}"₀' not in table} == set()


@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (
            17,
            proof_fields(
                KeyProof(
                    bytes(32), b"k", LIVE, 0, 0, b"", (), ProofValue(b"", (), (), bytes(144)),
                    Statement(SIGNER, bytes(32), bytes(32), 0, bytes(64)),
                )
            ),
        ),
        (
            18,
            receipt_fields(
                Receipt(
                    bytes(32), b"k", LIVE, 0, 0, bytes(32), bytes(32),
                    (Step("left", bytes(32)), Step("right", bytes(32))),
                    ReceiptStatement(SIGNER, bytes(32), 0, bytes(64)),
                )
            ),
        ),
    ],
    ids=["proof", "receipt"],
)  # fmt: skip
def test_every_field_of_a_file_is_described(number: int, fields: dict[str, Any]) -> None:
    described = section("wire", number)
    if number == 18:
        assert "as in section 17" in described
        described += section("wire", 17)
    assert {name for name in names(fields) if f"`{name}`" not in described} == set()
    assert f'`"{fields["format"]}"`' in described


def test_every_lung_is_named_where_lungs_are_listed() -> None:
    source = (ROOT / "lattice" / "api" / "routes" / "evidence.py").read_text("utf-8")
    listed = re.search(r"Literal\[(\"local\".*?)\]", source)
    assert listed, "the filter of entries has no list of lungs"
    lungs = re.findall(r"\w+", listed.group(1))
    assert "file" in lungs
    row = next(
        line
        for line in (REFERENCE / "events.md").read_text("utf-8").splitlines()
        if line.startswith("| `entry`")
    )
    assert [lung for lung in lungs if f"`{lung}`" not in row] == []
    for shape in (schemas.HistoryVersion, schemas.EntryEvent):
        assert f"({', '.join(lungs)})" in " ".join((shape.__doc__ or "").split())
