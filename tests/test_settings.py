"""Site settings: read from the named file, the workspace, or the defaults; errors are one line without a path."""

from dataclasses import replace
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
    compute = {"attention": "plain", "cpu_tuning": False, "gradient_checkpointing": True, "micro_batch": 1}
    other.write_text(yaml.safe_dump({"workers": 2, "min_cases": 20, **compute}))
    monkeypatch.setenv(ENV, str(other))
    expected = SiteSettings(workers=2, min_cases=20, **compute)
    assert load_settings(tmp_path) == expected
    other.write_text(f"checkpoint_sha256: ['{'aB' * 32}']\nlive_metrics: false\n")
    expected = SiteSettings(checkpoint_sha256=("ab" * 32,), live_metrics=False)
    assert load_settings(tmp_path) == expected
    other.write_text(yaml.safe_dump(expected.to_dict()))
    assert load_settings(tmp_path) == expected


def test_empty_keys_mean_the_defaults_and_a_home_folder_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("data_root:\ndevice:\ncheckpoint_sha256:\n")
    assert load_settings(named=path) == SiteSettings()
    path.write_text("data_root: ~/data\n")
    monkeypatch.setenv("HOME", "/home/site")
    assert load_settings(named=path).data_root == Path("/home/site/data")


def test_settings_can_be_copied_with_changes() -> None:
    settings = SiteSettings(data_root=Path("/data"))
    assert replace(settings, threads=2) == SiteSettings(data_root=Path("/data"), threads=2)
    assert SiteSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: /x", "unknown key 'data'; did you mean 'data_root'?"),
        ("processor: plain", "unknown key 'processor'; known ones: "),
        ("data_root: x", "data_root: must be an absolute path"),
        ("data_root: [/x]", "data_root: must be an absolute path"),
        ("- a", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("workers: many", "workers: expected int, got 'many'"),
        ("workers: true", "workers: expected int, got True"),
        ("min_cases: -1", "min_cases is -1; it must be 0 or more"),
        ("attention: fast", "attention is 'fast'; one of 'auto', 'plain'"),
        ("attention: [a]", "attention is .'a'.; one of"),
        ("cpu_tuning: auto", "cpu_tuning: expected bool, got 'auto'"),
        ("gradient_checkpointing: 1", "gradient_checkpointing: expected bool, got 1"),
        ("live_metrics: 1", "live_metrics: expected bool, got 1"),
        ("checkpoint_sha256: abc", "must be a list of SHA-256 hashes"),
        ("checkpoint_sha256: [abc]", "must be a list of SHA-256 hashes"),
        ("checkpoint_sha256: {}", "must be a list of SHA-256 hashes"),
        ("checkpoint_sha256: ''", "must be a list of SHA-256 hashes"),
        ("micro_batch: -1", "micro_batch is -1; it must be 0 or more"),
        ("data_root: ~nobody-of-that-name/x", "data_root: must be an absolute path"),
        ("device: gpu", "unknown device 'gpu'"),
        ("device: cuda:99", "device 'cuda:99' does not exist"),
    ],
)
def test_a_wrong_value_is_one_line(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    monkeypatch.setenv(ENV, str(path))
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings()
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_file_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV, str(tmp_path / "none.yaml"))
    with pytest.raises(SettingsError, match="FEDFMS_SITE names a file that does not exist"):
        load_settings()


def test_a_file_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_bytes(b"device: \xe9")
    monkeypatch.setenv(ENV, str(path))
    with pytest.raises(SettingsError, match=r"site.yaml is not valid YAML"):
        load_settings()

    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SettingsError, match=r"cannot read site.yaml \(Permission denied\)") as caught:
        load_settings()
    assert str(tmp_path) not in str(caught.value)
