"""How `make test` gets a browser and Node.js, on machines of each kind."""

import pytest

from tests import programs

APT = [("apt-get", "update", "-qq"), ("apt-get", "install", "-y", "-qq", "chromium")]


@pytest.fixture
def machine(monkeypatch):
    """A machine with some programs, on which the commands that begin so fail; what was run."""
    ran = []

    def make(has=(), root=False, node=(), fails=()):
        def succeeds(*command):
            # What this interpreter runs is told by the module's name.
            ran.append(command[2:] if command[1] == "-m" else command)
            return ran[-1][0] not in fails

        paths = {name: f"/usr/bin/{name}" for name in has}
        monkeypatch.setattr(programs.shutil, "which", paths.get)
        monkeypatch.setattr(programs, "is_root", lambda: root)
        monkeypatch.setattr(programs, "node_version", lambda: node)
        monkeypatch.setattr(programs, "succeeds", succeeds)
        return ran

    return make


@pytest.mark.parametrize("browser", programs.CHROMIUM)
def test_what_is_there_is_not_installed(machine, browser):
    ran = machine(has=[browser, "npm"], node=(20, 9, 0), root=True)
    assert programs.find_chromium() == f"/usr/bin/{browser}"
    programs.install_chromium()
    programs.install_node()
    assert ran == []


def test_root_gets_debians_chromium(machine):
    ran = machine(has=["apt-get"], root=True)
    programs.install_chromium()
    assert ran == APT


@pytest.mark.parametrize(
    "kind",
    [
        {"has": ["apt-get"], "root": False},
        {"has": [], "root": True},
        {"has": ["apt-get"], "root": True, "fails": ["apt-get"]},
    ],
)
def test_others_get_playwrights(machine, kind):
    ran = machine(**kind)
    programs.install_chromium()
    assert ran[-1] == ("playwright", "install", "--only-shell", "chromium")
    assert ran[:-1] == (APT[:1] if "fails" in kind else [])


@pytest.mark.parametrize("node", [(), (18, 19, 0), (20, 8, 1)])
def test_node_comes_from_pypi_where_it_is_missing_or_old(machine, node):
    ran = machine(has=["npm"], node=node)
    programs.install_node()
    assert ran == [("pip", "install", "--quiet", programs.NODE)]


def test_npm_belongs_to_it(machine):
    ran = machine(has=["node"], node=(24, 0, 0))
    programs.install_node()
    assert ran == [("pip", "install", "--quiet", programs.NODE)]


def test_what_cannot_be_installed_is_said(machine):
    machine(fails=["apt-get", "playwright", "pip"])
    with pytest.raises(SystemExit, match=r"click in Chromium, and neither.*make test-fast"):
        programs.install_chromium()
    with pytest.raises(SystemExit, match=r"at least 20\.9, with npm.*make test-fast"):
        programs.install_node()


@pytest.mark.node
def test_the_version_of_node_is_a_number():
    assert programs.node_version() >= programs.NODE_AT_LEAST
