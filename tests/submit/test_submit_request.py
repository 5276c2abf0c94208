from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_dist.errors import AuthenticationError, UsageError
from xmodal_dist.submit.request import check_address, find_token, next_attempt, plan_request

ARGUMENTS = ["--data", "s3://bucket/a data", "--output", "/runs/1"]


@given(
    st.lists(
        st.text(st.characters(exclude_characters="@", exclude_categories=["Cs"]), max_size=20), max_size=5
    )
)
def test_the_shell_of_the_cluster_sees_the_arguments_that_were_given(arguments: list[str]) -> None:
    request = plan_request("train", arguments)
    assert shlex.split(request.entrypoint) == ["python", "-m", "xmodal_dist.cli", "train", *arguments]


def test_the_same_command_has_the_same_name_and_another_has_another() -> None:
    names = [
        plan_request("train", ARGUMENTS).name,
        plan_request("evaluate", ARGUMENTS).name,
        plan_request("train", [*ARGUMENTS, "--resume"]).name,
        plan_request("train", ARGUMENTS, ["A=1"]).name,
    ]
    assert len(set(names)) == 4
    assert names[0] == plan_request("train", list(ARGUMENTS)).name
    assert names[0].startswith("xmodal-train-")
    assert (
        plan_request("train", ARGUMENTS, ["A=1", "B=2"]).name
        == plan_request("train", ARGUMENTS, ["B=2", "A=1"]).name
    )


def test_secrets_are_references_that_each_node_resolves() -> None:
    request = plan_request(
        "score", [], ["AWS_SECRET_ACCESS_KEY=env:TEAM_KEY", "AWS_REGION=eu-west-1", "TOKENIZERS=a=b"]
    )
    assert request.env_vars["AWS_SECRET_ACCESS_KEY"] == "${TEAM_KEY}"
    assert request.env_vars["AWS_REGION"] == "eu-west-1"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("HF_TOKEN=hf_abc", "--env HF_TOKEN=env:HF_TOKEN"),
        ("db_password=x", "would be stored in the job"),
        ("AWS_ACCESS_KEY_ID=AKIA", "would be stored in the job"),
        ("NAME", "expected NAME=VALUE"),
        ("2X=1", "expected NAME=VALUE"),
        ("A=env:b c", "a name in capitals"),
    ],
)
def test_secrets_in_the_clear_and_malformed_entries_are_refused(entry: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        plan_request("train", [], [entry])
    assert "hf_abc" not in str(caught.value) and "AKIA" not in str(caught.value)


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError, match="URI with a password") as caught:
        plan_request("train", ["--data", "https://me:hunter2@host/data"])
    assert "hunter2" not in str(caught.value)
    plan_request("train", ["--data", "s3://bucket/at@sign", "--output", "gs://b:1/x"])


def test_attempts_are_numbered_and_one_under_way_is_joined() -> None:
    assert next_attempt("a", {}) == ("a-1", False)
    assert next_attempt("a", {"a-1": "FAILED", "b-7": "RUNNING", "a-x": "RUNNING"}) == ("a-2", False)
    assert next_attempt("a", {f"a-{n}": "STOPPED" for n in range(1, 11)}) == ("a-11", False)
    assert next_attempt("a", {"a-1": "RUNNING", "a-2": "SUCCEEDED"}) == ("a-1", True)
    assert next_attempt("a", {"a-3": "PENDING"}) == ("a-3", True)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "http://localhost:1", "https://[::1]:8265", "http://127.9.0.1"]
)
def test_this_machine_needs_no_token(address: str) -> None:
    assert check_address(address, None) is None


def test_a_cluster_elsewhere_without_a_token_is_refused_unless_told_otherwise() -> None:
    with pytest.raises(AuthenticationError, match="RAY_AUTH_TOKEN") as caught:
        check_address("https://ray.example.com", None)
    assert caught.value.exit_code == 77
    assert "everyone" in (check_address("https://ray.example.com", None, insecure=True) or "")
    assert check_address("https://ray.example.com", "t") is None
    assert "unencrypted" in (check_address("http://10.0.0.7:8265", "t") or "")


@pytest.mark.parametrize("address", ["10.0.0.7:8265", "ray://10.0.0.7:10001", "http://", "auto"])
def test_addresses_are_those_of_a_dashboard(address: str) -> None:
    with pytest.raises(UsageError, match="expected the dashboard's"):
        check_address(address, "t")


def test_the_token_is_looked_for_where_ray_does(tmp_path: Path) -> None:
    assert find_token({}, tmp_path) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    (tmp_path / "named").write_text("named\n")
    named = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}
    assert find_token({}, tmp_path) == "home"
    assert find_token(named, tmp_path) == "named"
    assert find_token({**named, "RAY_AUTH_TOKEN": "direct"}, tmp_path) == "direct"
    (tmp_path / "named").write_text("\n")
    with pytest.raises(AuthenticationError, match="is empty"):
        find_token(named, tmp_path)
    with pytest.raises(AuthenticationError, match="No such file"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "gone")}, tmp_path)
