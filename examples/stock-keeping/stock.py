"""Stock keeping on Lattice: articles, bookings and a live reorder warning, over the HTTP API alone.

One file, so that it can be read from top to bottom and copied: how keys are laid out, how a booking
counts once, what happens when a node is down, and how a watcher misses nothing.

    article/SKU       a register: {"name": ..., "minimum": ...}, created once
    stock/SKU/PLACE   a counter: every booking adds to it, so bookings of all nodes sum up
    booking/REF       a register: the booking itself, created once, in one batch with its additions
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

API: Final = "/api/lattice"
TWIN: Final = ("http://127.0.0.1:8000", "http://127.0.0.1:8001")  # what `./launch_lattice.sh twin` starts
PASSING: Final = frozenset({"too_many", "not_ready", "store_failed"})  # a watcher waits for these to pass
QUANTITY_MAX: Final = 10**9
SILENCE_S: Final = (
    45.0  # a stream of events that says nothing for so long is dead: keep-alives come every 15 s
)
RETRY_S: Final = 1.0
FAILED, USAGE, UNREACHABLE = 1, 2, 3

Json = dict[str, Any]


class StockError(Exception):
    """What went wrong, in a sentence for the user, and the exit code that says it to a script."""

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Refused(StockError):
    """The node answered with a problem; `code` is the stable word in it."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Unreachable(StockError):
    """No node answers; nothing was written."""

    def __init__(self) -> None:
        super().__init__("no node answers: start one, or name another with --node", UNREACHABLE)


class BrokenOff(StockError):
    """A node took a write and did not answer: whether it wrote is unknown."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url} broke off, perhaps after writing: look again", UNREACHABLE)
        self.url = url


class Nodes:
    """The nodes that may be asked, in order. Each holds the whole ledger, so the first that is up will do."""

    def __init__(self, urls: Sequence[str], token: str | None) -> None:
        self.urls = [node_url(url) for url in urls]
        self._token = token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        # trust_env: a proxy of the environment has no business between a program and its own node.
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(30.0, connect=5.0), trust_env=False)

    def only(self, url: str) -> Nodes:
        """This one node and no other."""
        return Nodes([url], self._token)

    def close(self) -> None:
        self._http.close()

    def read(self, path: str, **query: str) -> Json:
        return self._answer(self._send("GET", path, query))

    def write(self, method: str, path: str, body: Json, headers: dict[str, str]) -> Json:
        return self._answer(self._send(method, path, None, body, headers))

    @contextmanager
    def events(self, last_id: str | None, *, follow: bool) -> Iterator[httpx.Response]:
        """The open stream of the first node's entries that touch stock. Raises httpx.TransportError."""
        with self._http.stream(
            "GET",
            f"{self.urls[0]}{API}/events",
            params={"type": "entry", "prefix": "stock/", "follow": str(follow).lower()},
            headers={"last-event-id": last_id} if last_id else {},
            timeout=httpx.Timeout(SILENCE_S, connect=5.0),
        ) as response:
            if response.status_code != 200:
                response.read()
                self._answer(response)
            yield response

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """Ask one node after the other. A write goes on to the next only if this one has not seen it."""
        for url in list(self.urls):
            try:
                return self._http.request(
                    method, f"{url}{API}{path}", params=query, json=body, headers=headers
                )
            except (httpx.ConnectError, httpx.ConnectTimeout):
                note(f"{url} does not answer")
            except httpx.TransportError as error:
                if method != "GET":
                    raise BrokenOff(url) from error
                note(f"{url} broke off")
            self.urls.append(self.urls.pop(0))  # for the rest of this command it is asked last
        raise Unreachable

    def _answer(self, response: httpx.Response) -> Json:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise StockError(f"{response.url} is no Lattice node: its answer is not a JSON object")
        if response.is_success:
            return body
        raise Refused(str(body.get("code")), str(body.get("detail") or body.get("title")))


@dataclass(frozen=True)
class Move:
    """One change of one counter."""

    sku: str
    place: str
    amount: int


class Stock:
    """The stock as the nodes hold it."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    # Articles: registers. The version that was seen goes along, so nobody overwrites what he has not seen.

    def create_article(self, sku: str, name: str, minimum: int) -> None:
        try:
            self.nodes.write(
                "PUT",
                f"/keys/article/{sku}",
                {"name": name, "minimum": minimum},
                {"if-none-match": "*"},
            )
        except Refused as error:
            if error.code == "precondition_failed":
                raise StockError(f"there is an article {sku} already: {self.article(sku)['name']}") from error
            raise

    def article(self, sku: str) -> Json:
        return article_in(self._article_key(sku))

    def rename(self, sku: str, name: str) -> None:
        shown = self._article_key(sku)
        self._replace(shown, {**article_in(shown), "name": name}, [shown["version"]])

    def resolve(self, sku: str, name: str) -> None:
        """Keep the version with this name; the new one names all that were seen, which ends them."""
        shown = self._article_key(sku)
        versions = [shown, *shown["siblings"]]
        values = [article_in({**one, "key": shown["key"]}) for one in versions]
        kept = [value for value in values if value["name"] == name]
        if not kept:
            names = ", ".join(repr(value["name"]) for value in values)
            raise StockError(f"{sku} is called {names}, not {name!r}")
        self._replace(shown, kept[0], [one["version"] for one in versions])

    def conflicts(self) -> list[Json]:
        """The keys with more than one live version: written at several nodes that did not see each other."""
        return [
            shown for prefix in ("article/", "booking/") for shown in self._keys(prefix) if shown["siblings"]
        ]

    def _article_key(self, sku: str) -> Json:
        try:
            return self.nodes.read(f"/keys/article/{sku}")
        except Refused as error:
            if error.code == "not_found":
                raise StockError(f"there is no article {sku}: create it with `article {sku} NAME`") from error
            raise

    def _replace(self, shown: Json, value: Json, over: list[str]) -> None:
        put = {"op": "put", "key": shown["key"], "value": value, "over": over, "if_match": shown["version"]}
        try:
            self.nodes.write("POST", "/entries", {"ops": [put]}, {"idempotency-key": uuid.uuid4().hex})
        except Refused as error:
            if error.code == "precondition_failed":
                raise StockError(f"{shown['key']} was changed at this moment: look again") from error
            raise

    # Bookings: additions to counters, in one batch with a record under the reference.

    def book(self, ref: str, kind: str, moves: Sequence[Move]) -> bool:
        """Book all of it or nothing. False: it was booked before, and nothing was counted again.

        The Idempotency-Key makes a retry at the same node safe for 24 hours, across its restarts too.
        The record makes it safe at every node that has heard of the booking, for ever.
        """
        record = {"kind": kind, "moves": [[move.sku, move.place, move.amount] for move in moves]}
        ops: list[Json] = [{"op": "put", "key": f"booking/{ref}", "value": record, "if_none_match": "*"}]
        ops += [
            {"op": "add", "key": f"stock/{move.sku}/{move.place}", "amount": move.amount} for move in moves
        ]
        try:
            done = self.nodes.write("POST", "/entries", {"ops": ops}, {"idempotency-key": f"stock-{ref}"})
        except BrokenOff as error:
            # Another node may not have heard of it yet, and would count it again.
            again = f"repeat it with --node {error.url} --ref {ref}: it counts once"
            raise StockError(f"{error.url} broke off, perhaps after writing; {again}", UNREACHABLE) from error
        except Refused as error:
            if error.code not in ("precondition_failed", "idempotency_mismatch"):
                raise
            held = self.booking(ref)
            if held is None or held["value"] != record:
                other = booking_text(held["value"]) if held else "of another program"
                raise StockError(f"the reference {ref} belongs to another booking: {other}") from error
            return False
        return not done["repeated"]

    def booking(self, ref: str) -> Json | None:
        try:
            return self.nodes.read(f"/keys/booking/{ref}")
        except Refused as error:
            if error.code == "not_found":
                return None
            raise

    def settle(self, ref: str) -> None:
        """End the conflict of a booking that was counted at several nodes."""
        shown = self.booking(ref)
        if shown is None:
            raise StockError(f"there is no booking {ref}")
        self._replace(shown, shown["value"], [one["version"] for one in (shown, *shown["siblings"])])

    # Counters.

    def places(self, sku: str) -> dict[str, int]:
        return {shown["key"].split("/")[2]: int(shown["total"]) for shown in self._counters(f"{sku}/")}

    def level(self, sku: str) -> Level:
        return _level(self._counters(f"{sku}/"))

    def levels(self) -> dict[str, Level]:
        found: dict[str, list[Json]] = {}
        for shown in self._counters(""):
            found.setdefault(shown["key"].split("/")[1], []).append(shown)
        return {sku: _level(counters) for sku, counters in found.items()}

    def articles(self) -> dict[str, Json]:
        return {shown["key"].split("/")[1]: article_in(shown) for shown in self._keys("article/")}

    def require(self, sku: str, place: str, quantity: int, ref: str | None) -> None:
        """Courtesy, no promise: another node may be selling the same piece at this moment."""
        here = self.places(sku).get(place, 0)
        # A retry is let through: the first try may be what took the last piece.
        if here < quantity and (ref is None or self.booking(ref) is None):
            raise StockError(f"{place} has {here} of {sku}, not {quantity}; --anyway books it all the same")

    def _counters(self, rest: str) -> list[Json]:
        return [shown for shown in self._keys(f"stock/{rest}") if shown["adds"] and is_counter(shown["key"])]

    def _keys(self, prefix: str) -> Iterator[Json]:
        query = {"prefix": prefix, "limit": "500"}
        while True:
            page = self.nodes.read("/keys", **query)
            yield from page["keys"]
            if page["next"] is None:
                return
            query["after"] = page["next"]


@dataclass(frozen=True)
class Level:
    """What there is of an article in all places, and how many additions that is the sum of."""

    adds: int
    total: int


def _level(counters: Sequence[Json]) -> Level:
    return Level(sum(one["adds"] for one in counters), sum(int(one["total"]) for one in counters))


@dataclass
class Seen:
    """What a watcher knows, kept in a file so that it goes on where it was: the place in the events, and
    the last level that it told of each article."""

    file: Path | None
    last_id: str | None = None
    levels: dict[str, Level] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path | None) -> Seen:
        if file is None or not file.exists():
            return cls(file)
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            levels = {sku: Level(*level) for sku, level in stored["levels"].items()}
            return cls(file, stored["last_id"], levels)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StockError(f"{file} was not written by `watch`: remove it to begin anew") from error

    def save(self) -> None:
        if self.file is None:
            return
        levels = {sku: [level.adds, level.total] for sku, level in self.levels.items()}
        fresh = self.file.with_name(self.file.name + ".new")
        fresh.write_text(json.dumps({"last_id": self.last_id, "levels": levels}), encoding="utf-8")
        os.replace(fresh, self.file)


class Watcher:
    """Tells every change of stock once, and which article to reorder.

    An event says only that a key was touched; what it is now is read. So whatever was lost, by a restart
    of the node or a change to another, is made good by reading everything once.
    """

    def __init__(self, nodes: Nodes, seen: Seen, *, for_ever: bool) -> None:
        # One node alone: what an event tells of is certain to be there, and perhaps not yet at another.
        self._nodes, self._stock, self._seen, self._for_ever = nodes, Stock(nodes), seen, for_ever

    def run(self) -> bool:
        """One stream, up to its end. False: the node did not answer."""
        url = self._nodes.urls[0]
        connected = False
        try:
            with (
                closing(self._nodes),
                self._nodes.events(self._seen.last_id, follow=self._for_ever) as answer,
            ):
                connected = True
                note(f"watching {url}")
                self._follow(answer.iter_bytes())
        except (httpx.TransportError, Unreachable):
            pass
        except Refused as error:
            if error.code not in PASSING:
                raise
            note(f"{url}: {error}")
        if connected and self._for_ever:
            note(f"{url} has gone")
        return connected

    def _follow(self, chunks: Iterator[bytes]) -> None:
        # The stream is open: what happens while we read waits in it, so nothing falls in between.
        if self._seen.last_id is None:
            self._read_all()
        for event_id, kind, data in frames(chunks):
            if kind == "lost":
                self._read_all()
            elif kind == "entry":
                skus = {key.split("/")[1] for key in json.loads(data)["keys"] if is_counter(key)}
                for sku in sorted(skus):
                    self._look(sku, self._stock.level(sku))
            self._seen.last_id = event_id
            # After the telling: a crash in between tells a line twice, which is better than never.
            self._seen.save()

    def _read_all(self) -> None:
        for sku, level in sorted(self._stock.levels().items()):
            self._look(sku, level)

    def _look(self, sku: str, now: Level) -> None:
        before = self._seen.levels.get(sku)
        # A node that has heard less than the one before it would only tell the past again.
        if before is not None and now.adds < before.adds:
            return
        self._seen.levels[sku] = now
        if before is None or now.total != before.total:
            article = self._stock.articles().get(sku, {"name": "?", "minimum": 0})
            low = now.total < article["minimum"]
            since = f"{before.total} -> {now.total}" if before else str(now.total)
            warning = f"  REORDER, minimum {article['minimum']}" if low else ""
            print(f"{sku} {article['name']}: {since}{warning}", flush=True)


def frames(chunks: Iterator[bytes]) -> Iterator[tuple[str, str, str]]:
    """Server-sent events as (id, type, data); an id without data only moves the place to resume from."""
    rest, fields = b"", {"id": "", "event": "", "data": ""}
    for chunk in chunks:
        # Split by hand: a key may hold U+2028, which text splitting takes for the end of a line.
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.decode("utf-8", "replace").partition(":")
            if name in fields:
                fields[name] = value.removeprefix(" ")
            elif not line and fields["id"]:
                yield fields["id"], fields["event"], fields["data"]
                fields = {"id": "", "event": "", "data": ""}


# The command line.


def cmd_article(stock: Stock, args: argparse.Namespace) -> None:
    stock.create_article(args.sku, args.name, args.minimum)
    print(f"created {args.sku}: {args.name}, minimum {args.minimum}")


def cmd_receive(stock: Stock, args: argparse.Namespace) -> None:
    stock.article(args.sku)
    booked(stock, args, "receipt", [Move(args.sku, args.place, args.quantity)])


def cmd_sell(stock: Stock, args: argparse.Namespace) -> None:
    stock.article(args.sku)
    if not args.anyway:
        stock.require(args.sku, args.place, args.quantity, args.ref)
    booked(stock, args, "sale", [Move(args.sku, args.place, -args.quantity)])


def cmd_move(stock: Stock, args: argparse.Namespace) -> None:
    stock.article(args.sku)
    if args.place == args.to:
        raise StockError("a move needs two places", USAGE)
    if not args.anyway:
        stock.require(args.sku, args.place, args.quantity, args.ref)
    moves = [Move(args.sku, args.place, -args.quantity), Move(args.sku, args.to, args.quantity)]
    booked(stock, args, "move", moves)


def cmd_count(stock: Stock, args: argparse.Namespace) -> None:
    """Book the difference, and never the number: what others book meanwhile stays in the sum."""
    stock.article(args.sku)
    difference = args.counted - stock.places(args.sku).get(args.place, 0)
    if difference:
        booked(stock, args, "count", [Move(args.sku, args.place, difference)])
    else:
        print(f"{args.place} has {args.counted} of {args.sku}, as booked")


def cmd_rename(stock: Stock, args: argparse.Namespace) -> None:
    stock.rename(args.sku, args.name)
    print(f"{args.sku} is now {args.name}")


def cmd_conflicts(stock: Stock, args: argparse.Namespace) -> None:
    found = stock.conflicts()
    for shown in found:
        kind, name = shown["key"].split("/", 1)
        versions = [shown["value"], *(one["value"] for one in shown["siblings"])]
        if kind == "article":
            versions = [article_in({"key": shown["key"], "value": value}) for value in versions]
            print(f"{name} has {len(versions)} names; keep one with `resolve {name} NAME`:")
            for value in sorted(versions, key=str):
                print(f"  {value['name']}")
        else:
            print(f"{name} was booked {len(versions)} times, at nodes that did not see each other:")
            for value in sorted(versions, key=str):
                print(f"  {booking_text(value)}")
            print(f"  `count` what is on the shelf, then `settle {name}`")
    if not found:
        print("no conflicts")


def cmd_resolve(stock: Stock, args: argparse.Namespace) -> None:
    stock.resolve(args.sku, args.name)
    print(f"{args.sku} is {args.name}")


def cmd_settle(stock: Stock, args: argparse.Namespace) -> None:
    stock.settle(args.ref)
    print(f"{args.ref} is settled")


def cmd_show(stock: Stock, args: argparse.Namespace) -> None:
    articles = {args.sku: stock.article(args.sku)} if args.sku else stock.articles()
    for sku, article in articles.items():
        places = stock.places(sku)
        total = sum(places.values())
        low = "  REORDER" if total < article["minimum"] else ""
        print(f"{sku} {article['name']}: {total}, minimum {article['minimum']}{low}")
        for place, here in places.items():
            print(f"  {place:<12}{here:>8}" + ("  sold more than there was" if here < 0 else ""))


def cmd_watch(stock: Stock, args: argparse.Namespace) -> None:
    """The first node that answers, and when it goes away the next one that does."""
    seen = Seen.load(args.seen)
    connected = False
    while True:
        for url in stock.nodes.urls:
            watcher = Watcher(stock.nodes.only(url), seen, for_ever=not args.once)
            connected = watcher.run() or connected
            if args.once and connected:
                return
        if not connected:
            raise Unreachable
        time.sleep(RETRY_S)


def booked(stock: Stock, args: argparse.Namespace, kind: str, moves: Sequence[Move]) -> None:
    fresh = stock.book(args.ref or uuid.uuid4().hex, kind, moves)
    text = booking_text({"kind": kind, "moves": [[move.sku, move.place, move.amount] for move in moves]})
    print(text if fresh else f"{args.ref} was booked before, nothing is counted again: {text}")


def booking_text(record: object) -> str:
    if not isinstance(record, dict):
        return "of another program"
    try:
        moves = ", ".join(f"{sku} {place} {amount:+d}" for sku, place, amount in record["moves"])
        return f"{record['kind']}: {moves}"
    except (TypeError, KeyError, ValueError):
        return "of another program"


def is_counter(key: str) -> bool:
    """Whether a key is one of ours; stock/ may hold what others wrote there."""
    return key.startswith("stock/") and key.count("/") == 2


def article_in(shown: Json) -> Json:
    """The value of an article; anybody in the network may have written something else there."""
    value = shown["value"]
    if isinstance(value, dict) and type(value.get("name")) is str and type(value.get("minimum")) is int:
        return value
    raise StockError(f"{shown['key']} holds no article: another program wrote it")


def note(text: str) -> None:
    print(f"stock: {text}", file=sys.stderr, flush=True)


def word(text: str) -> str:
    """A part of a key."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r} is not 1 to 64 letters, digits, dots, dashes and underscores, the first no sign"
        )
    return text


def node_url(text: str) -> str:
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise StockError(f"{text!r} is no address of a node, such as http://127.0.0.1:8000", USAGE)
    return str(url).rstrip("/")


def name_text(text: str) -> str:
    if not text.strip() or len(text) > 200 or not text.isprintable():
        raise argparse.ArgumentTypeError("a name is 1 to 200 printable characters")
    return text.strip()


def whole_number(lowest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not lowest <= int(text) <= QUANTITY_MAX:
            raise argparse.ArgumentTypeError(
                f"{text[:80]!r} is no whole number from {lowest} to {QUANTITY_MAX}"
            )
        return int(text)

    return parse


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="stock.py", description="Stock keeping on Lattice nodes.")
    top.add_argument(
        "--node",
        action="append",
        metavar="URL",
        help="a node to ask; give it again for the next to try (default: STOCK_NODES, else the twin's two)",
    )
    top.add_argument("--token-file", type=Path, help="the node's token, when it is not on this machine")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(
        run: Callable[[Stock, argparse.Namespace], None], text: str, *words: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(run.__name__.removeprefix("cmd_"), help=text, description=text)
        one.set_defaults(run=run)
        for each in words:
            one.add_argument(each, type=word, metavar=each.upper())
        return one

    def booking(
        run: Callable[[Stock, argparse.Namespace], None], text: str, *words: str
    ) -> argparse.ArgumentParser:
        one = command(run, text, *words)
        name, lowest = ("counted", 0) if run is cmd_count else ("quantity", 1)
        one.add_argument(name, type=whole_number(lowest), metavar=name.upper())
        one.add_argument(
            "--ref", type=word, required=run is cmd_receive,
            help="your number of this booking: a repeat with the same counts once",
        )  # fmt: skip
        if run in (cmd_sell, cmd_move):
            one.add_argument("--anyway", action="store_true", help="book it although there are too few")
        return one

    article = command(cmd_article, "create an article, once", "sku")
    article.add_argument("name", type=name_text, metavar="NAME")
    article.add_argument("--minimum", type=whole_number(0), default=0, help="reorder below this")
    booking(cmd_receive, "goods came in", "sku", "place")
    booking(cmd_sell, "goods went out", "sku", "place")
    booking(cmd_move, "from one place to another, all or nothing", "sku", "place", "to")
    booking(cmd_count, "stocktaking: what is really there", "sku", "place")
    command(cmd_rename, "give an article another name", "sku").add_argument(
        "name", type=name_text, metavar="NAME"
    )
    command(cmd_conflicts, "what was written at several nodes that did not see each other")
    command(cmd_resolve, "keep one of the names of an article", "sku").add_argument(
        "name", type=name_text, metavar="NAME"
    )
    command(cmd_settle, "end the conflict of a booking, after counting", "ref")
    command(cmd_show, "what there is").add_argument("sku", type=word, nargs="?", metavar="SKU")
    watch = command(cmd_watch, "tell every change, and what to reorder")
    watch.add_argument(
        "--seen", type=Path, metavar="FILE", help="remember in FILE what was told, and go on there"
    )
    watch.add_argument("--once", action="store_true", help="tell what is new and end")
    return top


def main() -> int:
    args = parser().parse_args()
    try:
        token = args.token_file.read_text(encoding="ascii").strip() if args.token_file else None
        args.run(Stock(Nodes(args.node or os.environ.get("STOCK_NODES", "").split() or TWIN, token)), args)
    except StockError as error:
        note(str(error))
        return error.exit_code
    except OSError as error:
        note(str(error))
        return FAILED
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
