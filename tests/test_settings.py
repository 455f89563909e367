"""A site's settings: from the named file, the workspace, or defaults; faults in one line without paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedfms.errors import SettingsError
from fedfms.settings import ENV, FILE_NAME, SiteSettings, load_settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV, raising=False)


def test_defaults_without_a_file(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == SiteSettings()


def test_workspace_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / FILE_NAME).write_text(f"data_root: {tmp_path}\ndevice: cpu\n")
    assert load_settings(tmp_path) == SiteSettings(data_root=tmp_path, device="cpu")
    other = tmp_path / "other.yaml"
    ways = {"attention": "plain", "processor": "plain", "checkpointing": True, "micro_batch": 1}
    other.write_text(yaml.safe_dump({"workers": 2, "min_cases": 20, **ways}))
    monkeypatch.setenv(ENV, str(other))
    expected = SiteSettings(workers=2, min_cases=20, **ways)
    assert load_settings(tmp_path) == expected
    other.write_text(f"checkpoint_sha256: ['{'aB' * 32}']\nquiet: true\n")
    expected = SiteSettings(checkpoint_sha256=("ab" * 32,), quiet=True)
    assert load_settings(tmp_path) == expected
    other.write_text(yaml.safe_dump(expected.to_dict()))
    assert load_settings(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: /x", "unknown settings"),
        ("data_root: x", "absolute path"),
        ("- a", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("workers: many", "must be a number"),
        ("min_cases: -1", "min_cases must be a number, 0 or more"),
        ("attention: fast", "there is no such attention; one of"),
        ("attention: [a]", "there is no such attention"),
        ("processor: fast", "there is no such processor; one of"),
        ("checkpointing: 1", "checkpointing must be true or false"),
        ("quiet: 1", "quiet must be true or false"),
        ("checkpoint_sha256: abc", "must be a list of SHA-256 hashes"),
        ("checkpoint_sha256: [abc]", "must be a list of SHA-256 hashes"),
        ("checkpoint_sha256: {}", "must be a list of SHA-256 hashes"),
        ("checkpoint_sha256: ''", "must be a list of SHA-256 hashes"),
        ("micro_batch: -1", "micro_batch must be a number, 0 or more"),
        ("data_root: ~nobody-of-that-name/x", "absolute path"),
        ("device: gpu", "there is no device 'gpu'"),
        ("device: cuda:99", "device 'cuda:99' is not there"),
    ],
)
def test_faults(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    monkeypatch.setenv(ENV, str(path))
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings()
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_file_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV, str(tmp_path / "none.yaml"))
    with pytest.raises(SettingsError, match="names a file that is not there"):
        load_settings()


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(b"\xff\xfe")
    monkeypatch.setenv(ENV, str(path))
    with pytest.raises(SettingsError, match=r"site.yaml is not valid YAML"):
        load_settings()

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError, match=r"site.yaml cannot be read \(Permission denied\)") as caught:
        load_settings()
    assert str(tmp_path) not in str(caught.value)
