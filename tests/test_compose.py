"""The image and the compose files as text, and the scripts beside them; environment/prove builds and starts them."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

import vmrepro
from vmrepro import doctor
from vmrepro.runs import provenance

ROOT = Path(__file__).resolve().parents[1]
LAB = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["lab"]
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())["services"]["lab"]
STEPS = [
    step.split(maxsplit=1)
    for step in re.sub(r"\\\n", " ", (ROOT / "environment" / "Dockerfile").read_text()).splitlines()
    if step and not step.startswith("#")
]


def steps(instruction: str) -> list[str]:
    return [text for name, text in STEPS if name == instruction]


def test_only_the_loopback_of_the_host_is_published():
    assert LAB["ports"]
    assert all(port.startswith("127.0.0.1:") for port in LAB["ports"])
    assert "network_mode" not in LAB


def test_the_service_has_no_more_rights_than_it_needs():
    assert LAB["cap_drop"] == ["ALL"]
    assert LAB["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "ipc", "pid"} & set(LAB)


def test_folders_of_the_host_must_exist_and_data_cannot_be_written():
    binds = {mount["target"]: mount for mount in LAB["volumes"] if isinstance(mount, dict)}
    assert set(binds) == {f"/workspace/{name}" for name in ("runs", "figures", "notebooks", "data")}
    assert all(mount["bind"] == {"create_host_path": False} for mount in binds.values())
    assert [target for target, mount in binds.items() if mount.get("read_only")] == ["/workspace/data"]


def test_a_gpu_is_reserved_in_the_second_file_only():
    assert "deploy" not in LAB
    assert set(GPU) == {"image", "build", "deploy"}
    assert GPU["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert (LAB["build"]["args"]["DEVICE"], GPU["build"]["args"]["DEVICE"]) == ("cpu", "cuda")
    assert LAB["image"] != GPU["image"]


def test_every_build_argument_is_one_of_the_dockerfile():
    declared = {text.partition("=")[0] for text in steps("ARG")}
    assert set(LAB["build"]["args"]) | set(GPU["build"]["args"]) <= declared


def test_bases_are_pinned_by_digest_and_cuda_is_the_locks():
    bases = dict(text.split("=") for text in steps("ARG") if "_BASE=" in text)
    assert set(bases) == {"CPU_BASE", "CUDA_BASE"}
    assert all(re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", base) for base in bases.values())
    lock = (ROOT / "environment" / "lock.txt").read_text()
    toolkit = re.search(r"^cuda-toolkit==(\d+\.\d+)", lock, flags=re.MULTILINE)[1]
    assert f"nvidia/cuda:{toolkit}." in bases["CUDA_BASE"]


def test_the_image_runs_as_its_user_and_says_how_it_is():
    assert steps("USER")[-1] == "${LAB_UID}:${LAB_GID}"
    assert len(steps("HEALTHCHECK")) == 1
    assert "healthcheck.py" in steps("HEALTHCHECK")[0]


def test_packages_are_installed_before_the_source_is_copied():
    order = [f"{name} {text}" for name, text in STEPS]
    install = next(index for index, step in enumerate(order) if "install.sh /opt/venv" in step)
    copied = [step for step in order[:install] if step.startswith("COPY")]
    assert "environment/lock.txt" in copied[0]
    assert not any("vmrepro" in step or "COPY . " in step for step in copied)
    assert "COPY . ." in order[install:]


def test_no_secret_enters_the_image_and_no_code_stays_out():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", ".git/config"} <= set(ignored)
    assert not any(line.startswith("**/") and line.strip("*/") in ("data", "runs", "build") for line in ignored)


@pytest.fixture
def host(tmp_path):
    """A checkout with environment/configure and what it touches, and programs of our own before the real ones."""
    for folder in ("environment", "figures", "notebooks", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "environment" / "configure", tmp_path / "environment")

    def configure(*arguments, gpus="", runtimes="runc "):
        for program, answer in (("nvidia-smi", gpus), ("docker", runtimes)):
            (tmp_path / "bin" / program).write_text(f"#!/bin/sh\necho '{answer}'\n")
            (tmp_path / "bin" / program).chmod(0o755)
        variables = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SUDO_UID": "1234", "SUDO_GID": "99"}
        command = [tmp_path / "environment" / "configure", *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        return done, (tmp_path / ".env").read_text().splitlines() if (tmp_path / ".env").exists() else None

    return configure


OVERLAY = "COMPOSE_FILE=docker-compose.yml:docker-compose.gpu.yml"
IDS = (1234, 99) if os.getuid() == 0 else (os.getuid(), os.getgid())
OWNER = [f"VMREPRO_UID={IDS[0]}", f"VMREPRO_GID={IDS[1]}"]


def test_configure_takes_the_gpu_that_containers_can_use(host, tmp_path):
    done, lines = host(gpus="GPU 0: Test", runtimes="nvidia runc ")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines == [OVERLAY, *OWNER]
    assert (tmp_path / "runs").stat().st_uid == IDS[0]
    assert (tmp_path / "data").is_dir()


@pytest.mark.parametrize(
    ("gpus", "runtimes", "said"),
    [("", "runc ", ""), ("", "nvidia runc ", ""), ("GPU 0: Test", "runc ", "Install NVIDIA's container toolkit")],
)
def test_configure_falls_back_to_the_cpu_and_says_why(host, gpus, runtimes, said):
    done, lines = host(gpus=gpus, runtimes=runtimes)
    assert done.returncode == 0
    assert said in done.stderr if said else done.stderr == ""
    assert "JupyterLab on the cpu" in done.stdout
    assert lines == OWNER


def test_configure_obeys_and_keeps_what_is_not_its_own(host, tmp_path):
    (tmp_path / ".env").write_text("JUPYTER_PORT=9999\nVMREPRO_UID=5\n")
    assert host("gpu")[1] == [OVERLAY, *OWNER, "JUPYTER_PORT=9999"]
    assert host("cpu", gpus="GPU 0: Test", runtimes="nvidia ")[1] == [*OWNER, "JUPYTER_PORT=9999"]
    done, lines = host("gpus")
    assert (done.returncode, lines) == (2, [*OWNER, "JUPYTER_PORT=9999"])
    assert "got gpus" in done.stderr


in_linux = pytest.mark.skipif(sys.platform != "linux", reason="the image is Linux")


def manifest(version="", commit=""):
    command = [sys.executable, ROOT / "environment" / "manifest.py", "--device=cpu", "--base=debian:1", f"--version={version}"]
    command.append(f"--commit={commit}")
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@in_linux
def test_the_manifest_names_source_base_and_packages(monkeypatch):
    monkeypatch.setenv("VMREPRO_COMMIT", "abc")
    done = manifest(vmrepro.__version__, "abc")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"version", "commit", "modified", "base", "device", "system", "libc", "python", "packages"}
    assert (found["version"], found["commit"], found["base"]) == (vmrepro.__version__, "abc", "debian:1")
    assert found["packages"]["torch"] == provenance.versions()["torch"]


@in_linux
def test_a_label_that_the_source_contradicts_stops_the_build(monkeypatch):
    monkeypatch.setenv("VMREPRO_COMMIT", "abc")
    done = manifest(commit="abd")
    assert done.returncode == 1
    assert "labelled commit abd, but its source is commit abc" in done.stderr
    assert manifest(version="0").returncode == 1


@pytest.mark.parametrize(("path", "status"), [("/api", 0), ("/other", 1)])
def test_health_is_an_answer_of_the_server_itself(path, status):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == path else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        variables = {**os.environ, "JUPYTER_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9"}
        command = [sys.executable, ROOT / "environment" / "healthcheck.py"]
        done = subprocess.run(command, env=variables, capture_output=True, check=False)
        server.shutdown()
    assert done.returncode == status
    assert subprocess.run(command, env=variables, capture_output=True, check=False).returncode == 1  # nobody listens any more


@pytest.mark.parametrize("name", doctor.LOOKS)
def test_the_page_of_the_environment_says_what_to_do_about_each_check(name):
    assert f"| `{name}` |" in (ROOT / "environment" / "README.md").read_text()
