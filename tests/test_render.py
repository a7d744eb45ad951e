"""`perceiver cluster render`: the files that start a cluster elsewhere, and what is refused."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.cli import cluster_parser
from pipeline.cli.main import main
from pipeline.config.load import load_config
from pipeline.config.tree import Config
from pipeline.deploy.dockerfile import COPIED
from pipeline.deploy.render import TARGETS, render, write_files
from pipeline.errors import UserError

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((Path(__file__).parent / "kuberay_schema.json").read_text(encoding="utf-8"))
SECRET = "planted-secret-4711"
TREE: dict[str, Any] = {
    "name": "Flowers_2",
    "output": "s3://bucket/runs",
    "data": {"train": "s3://bucket/train", "image": {"height": 32, "width": 32}},
    "model": {"adapter": {"kind": "pixels"}},
    "tracking": {"uri": "https://mlflow.example.org"},
    "cluster": {
        "num_workers": {"min": 2, "max": 8},
        "use_gpu": True,
        "cpus_per_worker": 4,
        "max_failures": 3,
        "deploy": {"gpus": 2, "memory_gb": 64},
    },
}
CLOUD = [
    "cluster.deploy.image=registry.example.org/perceiver:1",
    "cluster.deploy.spot=true",
    "cluster.deploy.cpu_machines=4",
    "cluster.deploy.redis=redis:6379",
    "cluster.deploy.secrets=[AWS_SECRET_ACCESS_KEY,REDIS_PASSWORD]",
]
KUBERAY = [*CLOUD, "cluster.deploy.kuberay.secret=perceiver"]
AWS = "cluster.deploy.aws={region: us-west-2, machine_type: g6.12xlarge, machine_image: ami-1}"
GCP = (
    "cluster.deploy.gcp={project: p, region: us-west1, zone: us-west1-a, accelerator: nvidia-l4, "
    "machine_type: g2-standard-8, machine_image: projects/p/global/images/docker-cuda}"
)
WITHOUT_GPU = ["cluster.use_gpu=false", "cluster.deploy.gpus=null"]
CPU_TYPES = ["cluster.deploy.aws.cpu_machine_type=m7i.2xlarge",
             "cluster.deploy.gcp.cpu_machine_type=n2-standard-8"]  # fmt: skip


@pytest.fixture
def secrets_file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.env"
    path.write_text(f"AWS_SECRET_ACCESS_KEY={SECRET}\nexport REDIS_PASSWORD={SECRET}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "flowers.yaml"
    path.write_text(yaml.safe_dump(TREE))
    return str(path)


def files_of(target: str, config_file: str, *overrides: str, verb: str = "train") -> dict[str, str]:
    return render(target, load_config(config_file, overrides), verb)


def strict(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{kind}"})


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_kuberay_s_files_follow_its_schema(config_file: str) -> None:
    files = files_of("kuberay", config_file, *KUBERAY, "cluster.deploy.kuberay.volumes={/data: m}")
    config_map, job = yaml.safe_load_all(files["rayjob.yaml"])
    (cluster,) = yaml.safe_load_all(files["raycluster.yaml"])
    strict("RayJob").validate(job)
    strict("RayCluster").validate(cluster)
    # These are rules of the operator that its schema does not hold.
    for made in (job, cluster):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", made["metadata"]["name"])
    assert job["spec"]["entrypoint"].split()[-2:] == ["train", "/etc/perceiver/Flowers_2.yaml"]
    assert job["spec"]["backoffLimit"] == 3
    head = pods(job["spec"]["rayClusterSpec"])[0]
    assert {"name": "configuration", "mountPath": "/etc/perceiver"} in head["containers"][0][
        "volumeMounts"
    ]
    assert list(config_map["data"]) == ["Flowers_2.yaml"]
    assert config_map["metadata"] == job["metadata"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("entrypont",), "python"),
        (("backoffLimit",), "3"),
        (("rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "spot"), True),
    ],
)
def test_the_schema_finds_mistakes(
    config_file: str, path: tuple[str | int, ...], value: object
) -> None:
    *_, job = yaml.safe_load_all(files_of("kuberay", config_file, *KUBERAY)["rayjob.yaml"])
    inner = job["spec"]
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        strict("RayJob").validate(job)


def test_kuberay_scales_gpu_workers_on_spot_machines_and_keeps_its_state(config_file: str) -> None:
    files = files_of("kuberay", config_file, *KUBERAY)
    spec = yaml.safe_load(files["raycluster.yaml"])["spec"]
    training, cpu = spec["workerGroupSpecs"]
    assert (training["minReplicas"], training["maxReplicas"]) == (1, 4)
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (0, 4)
    assert spec["enableInTreeAutoscaling"] is True
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods(spec)]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, "2", None]
    assert limits[1] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"}
    tolerated = [{t["key"] for t in pod.get("tolerations", ())} for pod in pods(spec)]
    assert "cloud.google.com/gke-spot" in tolerated[1] & tolerated[2]
    assert "nvidia.com/gpu" in tolerated[1] - tolerated[2]
    assert tolerated[0] == set(), "the head stays on a machine that nobody takes back"
    assert spec["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {
            "valueFrom": {"secretKeyRef": {"name": "perceiver", "key": "REDIS_PASSWORD"}}
        },
    }
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    named = [{entry["name"] for entry in pod["containers"][0]["env"]} for pod in pods(spec)]
    assert named == [{"AWS_SECRET_ACCESS_KEY"}] * 3, "KubeRay itself passes Redis's password"


def test_a_job_has_the_same_configuration(config_file: str, tmp_path: Path) -> None:
    config_map, _ = yaml.safe_load_all(files_of("kuberay", config_file, *KUBERAY)["rayjob.yaml"])
    script = files_of("slurm", config_file)["job.sbatch"]
    (written,) = re.findall(r"<<'(\w+)'\n(.*?)^\1$", script, flags=re.S | re.M)
    for number, text in enumerate((config_map["data"]["Flowers_2.yaml"], written[1])):
        (tmp_path / f"{number}.yaml").write_text(text)
        sent, own = (load_config(f) for f in (str(tmp_path / f"{number}.yaml"), config_file))
        assert without_deploy(sent) == without_deploy(own)
        assert sent.cluster.deploy is None


def without_deploy(config: Config) -> dict[str, Any]:
    tree = config.tree()
    del tree["cluster"]["deploy"]
    return tree


@pytest.mark.parametrize("target", ["aws", "gcp"])
def test_ray_s_launcher_takes_the_file(target: str, config_file: str, secrets_file: Path) -> None:
    own = [
        AWS if target == "aws" else GCP,
        *[text for text in CPU_TYPES if f".{target}." in text],
        f"cluster.deploy.secrets_file={secrets_file}",
    ]
    text = files_of(target, config_file, *CLOUD, *own)["ray-cluster.yaml"]
    tree = yaml.safe_load(text)
    validate_config(tree)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**tree, "max_worker": 1})
    validate_config(prepare_config(tree))  # as `ray up` does, with the provider's defaults
    types = tree["available_node_types"]
    assert types["training"]["resources"] == {"CPU": 8, "GPU": 2}
    assert (types["training"]["min_workers"], types["training"]["max_workers"]) == (1, 4)
    assert tree["max_workers"] == 8
    on_spot = {name for name, kind in types.items() if re.search("spot|preemptible", str(kind))}
    assert on_spot == {"training", "cpu"}
    head = tree["head_start_ray_commands"][-1]
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_REDIS_ADDRESS=redis:6379" in head
    worker = tree["worker_start_ray_commands"][-1]
    assert "RAY_gcs_rpc_server_reconnect_timeout_s=600" in worker and "REDIS" not in worker
    assert tree["file_mounts"]["~/.perceiver.env"] == str(secrets_file)
    for command in (*tree["head_start_ray_commands"], *tree["worker_start_ray_commands"]):
        subprocess.run(["sh", "-n", "-c", command], check=True)
    assert SECRET not in text


@pytest.mark.parametrize("target", ["slurm", "local"])
def test_a_script_is_one_that_the_shell_reads(target: str, config_file: str) -> None:
    overrides = ["cluster.deploy.secrets=[MLFLOW_TRACKING_PASSWORD]"]
    (script,) = files_of(target, config_file, *overrides).values()
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
    # Without its secret it ends before it starts anything.
    clean = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh"], input=script, text=True, env=clean, capture_output=True)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert "MLFLOW_TRACKING_PASSWORD" in line


def test_slurm_s_options_follow_the_configuration(config_file: str) -> None:
    own = "cluster.deploy.slurm={partition: gpu, account: lab, hours: 1.5, options: [--exclusive]}"
    script = files_of("slurm", config_file, own, verb="tune")["job.sbatch"]
    options = re.findall(r"^#SBATCH (.*)$", script, flags=re.M)
    assert {
        "--nodes=1-4", "--gpus-per-node=2", "--cpus-per-task=8", "--mem=64G", "--time=90",
        "--partition=gpu", "--account=lab", "--exclusive", "--requeue",
        "--job-name=flowers-2-tune",
    } <= set(options)  # fmt: skip
    commands = script.index("set -eu")
    assert all(script.index(f"#SBATCH {option}") < commands for option in options)


PLACED = [
    "cluster.resources={fast: 1, memory: 1e9}",
    "cluster.labels={kind: gpu, ray.io/market-type: spot}",
    "cluster.preprocess={cpus: 2, resources: {disk: 1}, labels: {kind: cpu}}",
]


def test_machines_offer_what_the_placement_asks_for(config_file: str, secrets_file: Path) -> None:
    """Of 2 processes and of 4 tasks on each machine, which has 8 CPUs."""
    spec = yaml.safe_load(files_of("kuberay", config_file, *KUBERAY, *PLACED)["raycluster.yaml"])
    strict("RayCluster").validate(spec)
    training, cpu = spec["spec"]["workerGroupSpecs"]
    assert (training["resources"], training["labels"]) == ({"fast": "2"}, {"kind": "gpu"})
    assert (cpu["resources"], cpu["labels"]) == ({"disk": "4"}, {"kind": "cpu"})
    own = [AWS, CPU_TYPES[0], f"cluster.deploy.secrets_file={secrets_file}",
           "cluster.accelerator_type=L4"]  # fmt: skip
    tree = yaml.safe_load(files_of("aws", config_file, *CLOUD, *PLACED, *own)["ray-cluster.yaml"])
    validate_config(tree)
    types = tree["available_node_types"]
    assert types["training"]["resources"] == {
        "CPU": 8,
        "GPU": 2,
        "accelerator_type:L4": 1,
        "fast": 2,
    }
    assert types["cpu"]["labels"] == {"kind": "cpu"}
    script = files_of("slurm", config_file, *PLACED[:2], "cluster.accelerator_type=L4")[
        "job.sbatch"
    ]
    assert script.count("""--resources='{"fast": 2}' --labels='kind=gpu'""") == 2
    assert "#SBATCH --gpus-per-node=l4:2" in script


@pytest.mark.parametrize(
    ("overrides", "machines"),
    [
        (["cluster.num_workers=6", "cluster.workers_per_node=1"], 6),
        (["cluster.num_workers=6", "cluster.placement=strict_spread"], 6),
        (["cluster.num_workers=2", "cluster.placement=strict_pack"], 1),
        (["cluster.num_workers=6", *WITHOUT_GPU, "cluster.deploy.cpus=12"], 2),
    ],
)
def test_processes_are_spread_over_machines_as_asked(
    overrides: list[str], machines: int, config_file: str
) -> None:
    script = files_of("slurm", config_file, *overrides)["job.sbatch"]
    assert f"#SBATCH --nodes={machines}\n" in script


def test_the_dockerfile_pins_what_constraints_pin(config_file: str) -> None:
    text = files_of("kuberay", config_file, *KUBERAY)["Dockerfile"]
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", text, flags=re.M)
              for word in line.split()[:-1]}  # fmt: skip
    assert copied == set(COPIED)
    assert all((ROOT / name).exists() for name in copied)
    (install,) = re.findall(r"^RUN uv pip install (.*)$", text, flags=re.M)
    assert "--constraint constraints.txt" in install and "'.[" in install
    assert "FROM nvidia/cuda" in text
    plain = files_of("kuberay", config_file, *KUBERAY, *WITHOUT_GPU)["Dockerfile"]
    assert "nvidia" not in plain and "--torch-backend=cpu" in plain


REFUSALS = [
    ("kuberay", [], "cluster.deploy.image is missing on kuberay"),
    ("kuberay", [*CLOUD], "cluster.deploy.kuberay.secret is missing"),
    ("kuberay", [*KUBERAY, "output=/home/me/runs"], "output=/home/me/runs on kuberay: the machi"),
    ("kuberay", [*KUBERAY, "shards=/data/set"], "shards=/data/set on kuberay: the machines do not"),
    ("kuberay", [*KUBERAY, "tracking.uri=sqlite:////me/mlflow.db"], "tracking.uri=sqlite:////me"),
    ("kuberay", [*KUBERAY, "tracking.uri=null"], "object storage cannot hold MLflow's database"),
    ("kuberay", [*KUBERAY, "cluster.num_workers=0"], "cluster.num_workers=0 on kuberay"),
    ("kuberay", [*KUBERAY, "cluster.deploy.secrets_file=x"], "kubectl create secret"),
    ("kuberay", [*KUBERAY, "cluster.address=auto"], "set cluster.address to null"),
    ("kuberay", [*KUBERAY, f"tracking.uri=https://me:{SECRET}@h"], "tracking.uri holds a password"),
    ("kuberay", [*KUBERAY, f"data.train=https://h/a?sig={SECRET}"], "data.train holds a password"),
    ("aws", CLOUD, "cluster.deploy.aws is missing: give its region"),
    ("gcp", CLOUD, "cluster.deploy.gcp is missing: give its project"),
    ("aws", [*CLOUD, AWS], "cluster.deploy.aws.cpu_machine_type is missing"),
    ("aws", [*CLOUD, AWS, CPU_TYPES[0]], "cluster.deploy.secrets_file is missing on aws"),
    ("slurm", ["cluster.deploy.redis=r:1"], "cluster.deploy.redis=r:1 on slurm"),
    ("slurm", ["cluster.deploy.image=i"], "set cluster.deploy.image to null"),
    ("slurm", ["cluster.deploy.cpu_machines=1"], "all machines of an allocation are alike"),
    ("local", ["cluster.deploy.spot=true"], "cluster.deploy.spot=True on local"),
    ("slurm", ["cluster.labels={kind: '!cpu'}"], "kind: !cpu is a condition"),
    ("slurm", ["cluster.labels={a: b}", "cluster.preprocess.labels={a: c}"], "a is b and c on the"),
    ("slurm", ["cluster.decode={workers: 2}"], "cluster.decode: no machine has CPUs for it"),
    ("slurm", ["cluster.num_workers=6", "cluster.workers_per_node=3"], "GPUs are enough for 2"),
    ("slurm", ["cluster.num_workers=6", "cluster.placement=strict_pack"], "has room for 2 of 6"),
    *(
        (target, ["cluster.use_gpu=false"], "cluster.deploy.gpus=2: no GPU is used; set cluster.us")
        for target in TARGETS
    ),
    ("local", ["cluster.deploy.cpus=7"], "a machine's training processes reserve 8 CPUs"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "overrides", "words"), REFUSALS)
def test_what_a_target_cannot_do_is_refused_in_one_line(
    target: str, overrides: list[str], words: str, config_file: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "files"
    command = ["cluster", "render", target, config_file, *overrides, "--to", str(folder)]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert SECRET not in line
    assert not folder.exists()


def test_a_secret_is_named_and_never_given(config_file: str) -> None:
    with pytest.raises(UserError, match="no name of an environment variable") as caught:
        load_config(config_file, [f"cluster.deploy.secrets=[{SECRET}]"])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "names", "words"),
    [
        (0o644, "[REDIS_PASSWORD]", "others may read it; run 'chmod 600"),
        (0o600, "[MLFLOW_TRACKING_PASSWORD]", "it has no line MLFLOW_TRACKING_PASSWORD=…"),
    ],
)
def test_a_file_of_secrets_is_checked(
    mode: int, names: str, words: str, config_file: str, secrets_file: Path
) -> None:
    secrets_file.chmod(mode)
    given = [f"cluster.deploy.secrets_file={secrets_file}", f"cluster.deploy.secrets={names}"]
    with pytest.raises(UserError, match=words):
        files_of("slurm", config_file, *given)


def test_a_folder_pods_share_may_hold_the_output(config_file: str) -> None:
    shared = ["cluster.deploy.kuberay.volumes={/data: media}", "output=/data/runs"]
    assert files_of("kuberay", config_file, *KUBERAY, *shared)


def test_files_go_to_a_folder_or_to_the_output(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cluster", "render", "kuberay", config_file, *KUBERAY]
    assert main([*command, "--to", str(tmp_path / "new" / "files")]) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "new" / "files").iterdir()}
    assert set(written) == {"rayjob.yaml", "raycluster.yaml", "Dockerfile"}
    capsys.readouterr()
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.out == written["rayjob.yaml"]
    assert "raycluster.yaml, Dockerfile" in shown.err
    assert main([*command, "--only", "Dockerfile"]) == 0
    assert capsys.readouterr().out == written["Dockerfile"]
    assert main([*command, "--only", "dockerfile"]) == 2


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("old")
    with pytest.raises(UserError, match=r"--to=.*cannot be written"):
        write_files({"first": "new", "x" * 300: "new"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    assert (tmp_path / "first").read_text() == "old"


def test_every_target_of_the_command_line_is_there() -> None:
    assert tuple(TARGETS) == cluster_parser.TARGETS
