import pytest

from vmrepro import paths

FOLDERS = [
    (paths.runs, "VMREPRO_RUNS", "runs"),
    (paths.figures, "VMREPRO_FIGURES", "figures"),
    (paths.data, "VMREPRO_DATA", "data"),
    (paths.checkpoints, "VMREPRO_CHECKPOINTS", "checkpoints"),
]
each_folder = pytest.mark.parametrize(("folder", "variable", "name"), FOLDERS, ids=[name for _, _, name in FOLDERS])


@each_folder
@pytest.mark.parametrize("value", [None, ""])
def test_a_folder_lies_in_the_checkout_by_default(folder, variable, name, value, monkeypatch, tmp_path):
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "vmrepro")
    assert folder() == tmp_path / name


@each_folder
def test_a_folder_lies_where_its_variable_says(folder, variable, name, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert folder() == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "~/mine")
    assert folder() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "near")
    assert folder() == tmp_path / "near"


def test_without_a_checkout_the_root_is_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "site-packages" / "vmrepro")
    monkeypatch.chdir(tmp_path)
    assert paths.root() == tmp_path
    assert paths.notebooks() == tmp_path / "notebooks"


def test_the_package_is_where_its_files_are():
    assert (paths.PACKAGE / "paths.py").is_file()
    assert (paths.root() / "vmrepro").is_dir()
