"""The files in deploy/cluster fit the programs that read them, and each other."""

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from deploy.config import load

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "cluster"

KUBERAY_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"),
        *("activeDeadlineSeconds", "clusterSelector", "jobId", "runtimeEnvYAML", "submitterPodTemplate", "suspend"),
    },
    "spec.rayClusterSpec": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs", "autoscalerOptions", "enableInTreeAutoscaling"},
    "spec.rayClusterSpec.authOptions": {"mode"},
    "spec.rayClusterSpec.headGroupSpec": {"rayStartParams", "template", "serviceType"},
    "spec.rayClusterSpec.workerGroupSpecs[]": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
"""Fields of KubeRay's types that a manifest of ours may use: https://ray-project.github.io/kuberay/reference/api/ (ray.io/v1: RayJobSpec,
RayClusterSpec, AuthOptions, HeadGroupSpec, WorkerGroupSpec)."""


def rayjob() -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((FILES / "rayjob.yaml").read_text())
    return manifest


def tables(value: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """All tables below the listed paths, with their path."""
    if isinstance(value, list):
        return [found for inner in value for found in tables(inner, f"{path}[]")]
    if not isinstance(value, dict) or path not in KUBERAY_FIELDS:
        return []
    return [(path, value), *(found for key, inner in value.items() for found in tables(inner, f"{path}.{key}" if path else key))]


def test_the_cluster_of_ray_up_fits_rays_own_schema() -> None:
    found = find_spec("ray")
    assert found is not None and found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((FILES / "ray-cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "worker_nodes": {}}, schema)


def test_every_ray_of_ray_up_wants_the_token() -> None:
    config = yaml.safe_load((FILES / "ray-cluster.yaml").read_text())
    starts = [line for key in ("head_start_ray_commands", "worker_start_ray_commands") for line in config[key] if "ray start" in line]
    assert len(starts) == 2 and all(line.startswith("export RAY_AUTH_MODE=token; ") for line in starts)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_the_rayjob_uses_fields_that_kuberay_has() -> None:
    manifest = rayjob()
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    found = tables(manifest)
    assert {path for path, _ in found} == set(KUBERAY_FIELDS)
    assert [(path, key) for path, table in found for key in table if key not in KUBERAY_FIELDS[path]] == []


def test_the_rayjob_is_closed_to_strangers_and_its_volumes_exist() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        names = {volume["name"] for volume in pod["volumes"]}
        assert all(mount["name"] in names for container in pod["containers"] for mount in container["volumeMounts"])


def test_the_rayjob_has_room_for_what_it_runs() -> None:
    spec = rayjob()["spec"]
    words = spec["entrypoint"].split()
    processes = sum(int(words[words.index(flag) + 1]) for flag in ("--workers", "--servers"))
    (nodes,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = nodes["template"]["spec"]["containers"]
    assert processes <= nodes["replicas"] * int(container["resources"]["limits"]["cpu"])


def test_the_entry_point_of_the_rayjob_is_a_run_that_loads() -> None:
    words = rayjob()["spec"]["entrypoint"].split()
    assert words[:2] == ["pserver", "run"]
    config = ROOT / Path(words[2]).relative_to("/opt/pserver")
    sets = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    loaded = load(config, sets)
    assert not loaded.security.allow_plaintext and loaded.run.storage_path == "/runs"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray_pin,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    cluster = rayjob()["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray_pin
    image = f"pserver:{project['version']}"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {image} == {yaml.safe_load((FILES / "ray-cluster.yaml").read_text())["docker"]["image"]}
    assert f"-t {image} ." in (FILES / "Dockerfile").read_text()


def test_the_image_copies_what_is_there_and_all_that_is_installed() -> None:
    text = (FILES / "Dockerfile").read_text()
    copied = {source for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    assert {"ps", "workers", "protos", "deploy", "pyproject.toml", "constraints.txt"} <= copied
