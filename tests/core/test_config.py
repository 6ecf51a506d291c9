"""Settings: precedence, origins, paths, every mistake, and that the documents follow the table."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from lattice.config import SETTINGS, Settings, Source, closest, load
from lattice.core.errors import ConfigError
from lattice.core.identity import NodeKey

ROOT = Path(__file__).resolve().parents[2]
PEER = NodeKey(bytes(32)).peer_id


def settings_of(tmp_path: Path, *lines: str, **environ: str) -> Settings:
    """Settings from a file of these lines and an environment of these names."""
    path = tmp_path / ".env.test"
    path.write_text("\n".join(lines), encoding="utf-8")
    return load(env_file=path, environ=environ)


def problem(tmp_path: Path, *lines: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, *lines, **environ)
    assert "\n" not in caught.value.message
    assert caught.value.kind.exit_code == 78
    return caught.value.message


def test_the_defaults(tmp_path: Path) -> None:
    settings = load(environ={}, project_dir=tmp_path)
    assert settings.node_name == "nodeA"
    assert settings.data_dir == tmp_path / "data" / "nodeA"
    assert settings.log_dir == tmp_path / "logs"
    assert settings.api_token_file == tmp_path / "data" / "nodeA" / "api.token"
    assert str(settings.api_bind) == "127.0.0.1:8000"
    assert str(settings.sync_bind) == "0.0.0.0:8100"
    assert [str(address) for address in settings.p2p_listen] == ["/ip4/0.0.0.0/tcp/9000"]
    assert settings.nodes == ()
    assert settings.join is None
    assert settings.p2p_topic is None
    assert settings.p2p_enabled is True
    assert settings.sync_mode == "auto"
    assert settings.heartbeat_interval_s == 5
    assert settings.peerless_timeout_s == 60
    assert settings.http_poll_interval_s == 10
    assert settings.disk_reserve_bytes == 256 * 1024 * 1024
    assert settings.log_format == "text"
    assert set(settings.source.origins.values()) == {"default"}
    assert settings.source.env_file is None


def test_each_source_wins_over_the_one_below_it(tmp_path: Path) -> None:
    path = tmp_path / ".env.test"
    path.write_text("LATTICE_LOG_LEVEL=ERROR\nLATTICE_NODE_NAME=file\nLATTICE_SYNC_MODE=p2p\n")
    environ = {"LATTICE_LOG_LEVEL": "WARNING", "LATTICE_NODE_NAME": "environment"}
    settings = load(env_file=path, environ=environ, flags={"LATTICE_LOG_LEVEL": "DEBUG"})
    assert settings.log_level == "DEBUG"
    assert settings.node_name == "environment"
    assert settings.sync_mode == "p2p"
    origins = settings.source.origins
    assert origins["LATTICE_LOG_LEVEL"] == "flag"
    assert origins["LATTICE_NODE_NAME"] == "environment"
    assert origins["LATTICE_SYNC_MODE"] == "file"
    assert origins["LATTICE_NODES"] == "default"
    assert (settings.source.env_file, settings.source.file_count) == (path, 3)


def test_a_name_set_to_nothing_means_the_default_and_still_wins(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "LATTICE_NODES=http://192.0.2.7:8100", LATTICE_NODES="")
    assert settings.nodes == ()
    assert settings.source.origins["LATTICE_NODES"] == "environment"


def test_the_environment_is_read_when_asked_and_not_at_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_NODE_NAME", "late")
    assert load(project_dir=tmp_path).node_name == "late"


def test_paths_start_at_the_project_and_not_at_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = settings_of(project, "LATTICE_NODE_NAME=b", "LATTICE_LOG_DIR=../out", "LATTICE_JOIN=@t.txt")
    assert settings.data_dir == project / "data" / "b"
    assert settings.log_dir == tmp_path / "out"
    assert settings.join == f"@{project / 't.txt'}"
    absolute = settings_of(project, f"LATTICE_DATA_DIR={elsewhere / 'd'}")
    assert absolute.data_dir == elsewhere / "d"


def test_the_env_file_of_the_project_is_found_from_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "launch_lattice.sh").touch()
    (tmp_path / ".env").write_text("LATTICE_NODE_NAME=found\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    settings = load(environ={})
    assert settings.node_name == "found"
    assert settings.source.project_dir == tmp_path


def test_a_file_as_editors_and_people_write_it(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(
        b"\xef\xbb\xbf# a comment\r\nLATTICE_NODE_NAME = 'quoted' # and why\r\nexport LATTICE_MDNS=on\r\n"
        b'LATTICE_NODES="http://192.0.2.7:8100, http://192.0.2.8:8100/"\r\nLATTICE_P2P_TOPIC=$HOME\r\n'
    )
    settings = load(environ={}, project_dir=tmp_path)
    assert settings.node_name == "quoted"
    assert settings.mdns is True
    assert settings.nodes == ("http://192.0.2.7:8100", "http://192.0.2.8:8100")
    assert settings.p2p_topic == "$HOME"
    assert settings.source.file_count == 4


def test_all_values_of_every_kind(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        "LATTICE_API_BIND=[::]:8000",
        "LATTICE_SYNC_BIND=OFF",
        "LATTICE_P2P_ENABLED=No",
        "LATTICE_P2P_LISTEN=/ip4/0.0.0.0/tcp/9000,/ip6/::/tcp/9001",
        f"LATTICE_P2P_BOOTSTRAP=/dns/a.example/tcp/9000/p2p/{PEER}",
        "LATTICE_ALLOWED_HOSTS=a.example,b.example a.example",
        "LATTICE_CORS_ORIGINS=http://localhost:3000",
        "LATTICE_DISK_RESERVE=1 GiB",
        "LATTICE_LOG_LEVEL=debug",
        "LATTICE_HEARTBEAT_INTERVAL_S=0.5",
        "LATTICE_SYNC_PUBLIC_URL=https://ledger.example/nodeA/",
    )
    assert settings.sync_bind is None
    assert settings.p2p_enabled is False
    assert [address.port for address in settings.p2p_listen] == [9000, 9001]
    assert settings.p2p_bootstrap[0].peer_id == PEER
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.cors_origins == ("http://localhost:3000",)
    assert settings.disk_reserve_bytes == 1 << 30
    assert settings.log_level == "DEBUG"
    assert settings.heartbeat_interval_s == 0.5
    assert settings.sync_public_url == "https://ledger.example/nodeA"
    assert settings.api_url == "http://[::1]:8000"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("LATTICE_NODE_NAME=a/b", "letters, digits"),
        ("LATTICE_NODE_NAME=..", "letters, digits"),
        (f"LATTICE_NODE_NAME={'x' * 65}", "letters, digits"),
        ("LATTICE_API_BIND=8000", "write HOST:PORT"),
        ("LATTICE_API_BIND=off", "write HOST:PORT"),
        ("LATTICE_SYNC_BIND=0.0.0.0:81000", "'81000' is not a port"),
        ("LATTICE_P2P_LISTEN=0.0.0.0:9000", "write /ip4/ADDRESS/tcp/PORT"),
        (f"LATTICE_P2P_LISTEN=/ip4/0.0.0.0/tcp/9000/p2p/{PEER}", "leave out /p2p/"),
        ("LATTICE_P2P_ANNOUNCE=/ip4/0.0.0.0/tcp/9000", "nobody can dial"),
        ("LATTICE_P2P_BOOTSTRAP=/ip4/192.0.2.7/tcp/9000", "the peer id is missing"),
        ("LATTICE_NODES=192.0.2.7:8100", "http:// or https://"),
        ("LATTICE_SYNC_PUBLIC_URL=http://0.0.0.0:8100", "name the machine"),
        ("LATTICE_CORS_ORIGINS=*", "name each origin"),
        ("LATTICE_P2P_ENABLED=maybe", "write true or false"),
        ("LATTICE_SYNC_MODE=tcp", "write one of auto, p2p, http"),
        ("LATTICE_LOG_FORMAT=xml", "write one of text, json"),
        ("LATTICE_HEARTBEAT_INTERVAL_S=16", "from 0.1 to 15"),
        ("LATTICE_HEARTBEAT_INTERVAL_S=5s", "from 0.1 to 15"),
        ("LATTICE_HEARTBEAT_INTERVAL_S=nan", "from 0.1 to 15"),
        ("LATTICE_PEERLESS_TIMEOUT_S=0", "from 1 to 3600"),
        ("LATTICE_HTTP_POLL_INTERVAL_S=-1", "from 0.1 to 3600"),
        ("LATTICE_DISK_RESERVE=1GB", "KiB, MiB or GiB"),
        ("LATTICE_DISK_RESERVE=-1", "KiB, MiB or GiB"),
        ("LATTICE_TLS_CA_FILE=none.pem", "there is no file"),
        ("LATTICE_P2P_TOPIC=käse", "printable ASCII"),
    ],
)
def test_a_bad_value_is_named_with_its_place_and_the_remedy(tmp_path: Path, line: str, says: str) -> None:
    text = problem(tmp_path, line)
    assert line in text
    assert ".env.test" in text
    assert says in text


def test_the_place_of_a_mistake_is_the_source_that_won(tmp_path: Path) -> None:
    assert "in the environment" in problem(tmp_path, "LATTICE_MDNS=on", LATTICE_MDNS="x")
    with pytest.raises(ConfigError, match="on the command line"):
        load(environ={}, flags={"LATTICE_MDNS": "x"}, project_dir=tmp_path)


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    text = problem(tmp_path, "LATTICE_MDNS=x", "LATTICE_API_BIND=x", "LATTICE_MDSN=on")
    assert "LATTICE_MDNS=x" in text
    assert "LATTICE_API_BIND=x" in text
    assert "did you mean LATTICE_MDNS?" in text


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (("LATTICE_PEERLESS_TIMEOUT_S=9",), "LATTICE_HEARTBEAT_INTERVAL_S"),
        (("LATTICE_SYNC_MODE=p2p", "LATTICE_P2P_ENABLED=false"), "LATTICE_P2P_ENABLED=true"),
        (("LATTICE_SYNC_BIND=0.0.0.0:8000",), "both listen on port 8000"),
        (("LATTICE_API_BIND=127.0.0.1:9000",), "both listen on port 9000"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, lines: tuple[str, ...], names: str) -> None:
    assert names in problem(tmp_path, *lines)


def test_equal_ports_that_do_not_meet_are_fine(tmp_path: Path) -> None:
    settings_of(tmp_path, "LATTICE_API_BIND=127.0.0.1:8000", "LATTICE_SYNC_BIND=192.0.2.1:8000")
    settings_of(tmp_path, "LATTICE_API_BIND=0.0.0.0:0", "LATTICE_SYNC_BIND=0.0.0.0:0")
    settings_of(tmp_path, "LATTICE_API_BIND=127.0.0.1:9000", "LATTICE_P2P_ENABLED=false")


def test_an_unknown_name_is_an_error_in_file_and_flag_and_a_warning_in_the_environment(
    tmp_path: Path,
) -> None:
    text = problem(tmp_path, "LATTICE_HEARTBEAT_INTERVALL=5")
    assert "did you mean LATTICE_HEARTBEAT_INTERVAL_S?" in text
    with pytest.raises(ConfigError, match="did you mean LATTICE_NODES"):
        load(environ={}, flags={"LATTICE_NODE": "x"}, project_dir=tmp_path)
    settings = settings_of(tmp_path, LATTICE_SYNCMODE="http", PATH="x")
    assert settings.sync_mode == "auto"
    assert settings.source.warnings == (
        "LATTICE_SYNCMODE in the environment is not a setting: did you mean LATTICE_SYNC_MODE?",
    )


def test_a_name_without_any_likeness_gets_no_suggestion(tmp_path: Path) -> None:
    assert closest("LATTICE_QQQQQQQQQQQQQQQ") is None
    assert "did you mean" not in problem(tmp_path, "LATTICE_QQQQQQQQQQQQQQQ=1")


def test_the_old_name_of_the_data_directory_fails_loudly_everywhere(tmp_path: Path) -> None:
    for text in (
        problem(tmp_path, "LATTICE_STATE_DIR=x"),
        problem(tmp_path, LATTICE_STATE_DIR="x"),
    ):
        assert "now LATTICE_DATA_DIR" in text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("LATTICE_MDNS",), "has no value"),
        (("LATTICE_MDNS=on", "LATTICE_MDNS=off"), "line 2: LATTICE_MDNS is set a second time"),
        (("LATTICE_NODE_NAME='open",), "line 1: write NAME=value"),
    ],
)
def test_a_line_that_is_no_setting(tmp_path: Path, lines: tuple[str, ...], says: str) -> None:
    assert says in problem(tmp_path, *lines)


def test_names_of_other_programs_in_the_file_are_a_warning(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "PORT=8000", "LATTICE_MDNS=on")
    assert len(settings.source.warnings) == 1
    assert "PORT" in settings.source.warnings[0]
    assert settings.source.file_count == 1


def test_a_file_that_is_not_there_or_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(env_file=tmp_path / "none", environ={})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load(env_file=tmp_path / "binary", environ={})


def test_a_ticket_is_never_shown(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "LATTICE_JOIN=lattice1verysecret")
    assert settings.join == "lattice1verysecret"
    assert "verysecret" not in repr(settings)
    assert "verysecret" not in problem(tmp_path, "LATTICE_JOIN=lattice1verysecret", "LATTICE_MDNS=x")


def test_each_setting_is_a_field_and_each_field_a_setting() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"source"}
    assert fields == {setting.field for setting in SETTINGS}
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    assert all(setting.doc.endswith(".") and setting.kind for setting in SETTINGS)
    assert dataclasses.fields(Source)


def test_examples_are_valid(tmp_path: Path) -> None:
    """.env.example shows them; a reader takes the # away."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "ca.pem").touch()
    settings_of(tmp_path, *(f"{each.name}={each.default or each.example}" for each in SETTINGS))


@pytest.mark.slow
def test_the_documents_follow_the_table() -> None:
    script = ROOT / "scripts" / "settings_docs.py"
    environ = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("~nosuchuser/x", "~nosuchuser is the home directory of nobody"),
        ("x" * 300, "longer than this system takes"),
        ("x/" * 3000, "longer than this system takes"),
        ("a\0b", "no NUL"),
    ],
    ids=["unknown user", "long name", "long path", "NUL"],
)
@pytest.mark.parametrize("name", ["DATA_DIR", "LOG_DIR", "API_TOKEN_FILE", "TLS_CA_FILE", "JOIN"])
def test_a_path_that_cannot_be_is_named_with_its_setting(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    said = problem(tmp_path, **{f"LATTICE_{name}": f"@{text}" if name == "JOIN" else text})
    assert said.startswith(f"LATTICE_{name}")
    assert words in said
    assert len(said) < 400, "a long value is cut"


def test_a_current_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file = tmp_path / ".env.test"
    env_file.touch()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="current directory"):
        load(environ={})
    with pytest.raises(ConfigError, match="current directory"):
        load(env_file=Path("env"), environ={})
    assert load(env_file=env_file, environ={}).data_dir == tmp_path / "data" / "nodeA"
