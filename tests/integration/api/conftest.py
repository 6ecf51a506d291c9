"""Fixtures: a real node, its API, and an operator's client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from lattice.api.app import create_app
from lattice.api.refusals import Refusals
from lattice.node.node import Node
from tests.integration.api.api_kit import Lines, in_process, operator_access, running_node


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
async def node(lines: Lines) -> AsyncIterator[Node]:
    async with running_node(lines=lines) as running:
        yield running


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()


@pytest.fixture
async def app(node: Node, lines: Lines, refusals: Refusals) -> FastAPI:
    return create_app(node, operator_access(), logs=lines, refusals=refusals)


@pytest.fixture
async def operator(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(app) as client:
        yield client
