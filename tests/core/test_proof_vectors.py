"""The committed proof files and receipts: those that people keep verify for ever, the others never."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from merkletools import MerkleTools

from lattice.core.errors import LatticeError
from lattice.core.forks import unpack_fork_proof
from lattice.core.identity import peer_id_of
from lattice.core.proofs import parse_proof, proof_fields, verify_proof
from lattice.core.receipts import parse_receipt, receipt_fields, verify_receipt
from tests.core.core_kit import vectors

PROOFS = vectors("proofs")
RECEIPTS = vectors("receipts")


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("case", named(PROOFS))
def test_proof(case: dict[str, Any]) -> None:
    before = copy.deepcopy(case["file"])
    if not case["valid"]:
        with pytest.raises(LatticeError) as refused:
            verify_proof(parse_proof(case["file"]))
        assert refused.value.code == "malformed"
    else:
        proof = parse_proof(case["file"])
        proven = verify_proof(proof)
        assert case["shows"] == {
            "present": proven.present,
            "version": proven.winner and str(proven.winner),
            "author": proven.author and peer_id_of(proven.author),
            "value": None if proven.value is None else proven.value.hex(),
        }
        assert proof_fields(proof) == case["file"]
    assert case["file"] == before


def test_the_proof_below_a_fork_ends_at_the_seal_of_the_branch() -> None:
    """Where the log was cut, the fork proof is all that still holds a seal over what is left."""
    case = next(case for case in PROOFS if "fork_proof" in case)
    proof = parse_proof(case["file"])
    fork = unpack_fork_proof(proof.network_id, bytes.fromhex(case["fork_proof"]))
    assert proof.value is not None
    branch = tuple(node.header_bytes for node in fork.one.headers)
    assert proof.value.headers[-len(branch) :] == branch
    assert proof.value.seal == fork.one.seal.pack()
    assert verify_proof(proof).author == fork.log.author


@pytest.mark.parametrize("case", named(RECEIPTS))
def test_receipt(case: dict[str, Any]) -> None:
    if case["path_holds"] is not None:
        fields = case["file"]
        held = MerkleTools(hash_type="sha256").validate_proof(
            fields["proof"], fields["target_hash"], fields["merkle_root"]
        )
        assert held is case["path_holds"]
    if not case["valid"]:
        with pytest.raises(LatticeError) as refused:
            verify_receipt(parse_receipt(case["file"]))
        assert refused.value.code == "malformed"
        return
    receipt = parse_receipt(case["file"])
    verify_receipt(receipt)
    assert receipt_fields(receipt) == case["file"]


def test_both_kinds_have_what_must_be_refused() -> None:
    for cases in (PROOFS, RECEIPTS):
        assert sum(case["valid"] for case in cases) >= 6
        assert sum(not case["valid"] for case in cases) >= 25
        assert len({case["name"] for case in cases}) == len(cases)
