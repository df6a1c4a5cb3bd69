"""The chart: what it renders, what an API server says of it, who may do what once it is installed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from expunge_controller.execution.kubernetes.pod_config import STORE_KEYS
from expunge_controller.experiment.crd import resource_definition
from expunge_controller.serve import parser as serve_parser

from tests.support.chart import CHART, Object, helm, identity, of_kind, rendered, template
from tests.support.control_plane import ControlPlane
from tests.support.kubelet import expanded
from tests.support.operating import Operating, apply, experiment, install_definition, slower, status, wait_until
from tests.support.runs import attempts
from tests.support.testsite import Site, until
from tests.support.toolchain import binary

EVERYTHING = (
    "store.existingSecret=s3",
    "hub.existingSecret=hub",
    "watchNamespaces={team-a,team-b}",
    "networkPolicy.enabled=true",
    "serviceMonitor.enabled=true",
    "proxy.https=http://proxy:3128",
    "caBundleConfigMap=ca",
    "imagePullSecrets[0].name=pull",
    "operator.nodeSelector.pool=system",
    "operator.podAnnotations.a=b",
    "jobs.serviceAccount.annotations.role=r",
)


def test_helm_finds_nothing_to_say() -> None:
    done = helm("lint", str(CHART), "--strict", "--set", "store.uri=s3://bucket/prefix")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("store.url=s3://bucket", "store"),
        ("store.uri=/tmp/store", "store.uri"),
        ("operator.maxJobs=0", "maxJobs"),
        ("jobs.image.digest=abc", "digest"),
        ("watchNamespaces={UPPER}", "watchNamespaces"),
        ("env.PYTHONPATH=/tmp", "env"),
    ],
)
def test_a_value_that_is_wrong_is_refused_by_name(value: str, said: str) -> None:
    done = template("expunge", value)
    assert done.returncode != 0
    assert said.rpartition(".")[2] in done.stderr


def test_without_a_store_it_says_so() -> None:
    done = template("expunge", "store.uri=")
    assert done.returncode != 0
    assert "store.uri: s3://bucket/prefix" in done.stderr


@pytest.mark.parametrize("values", [(), EVERYTHING])
def test_every_object_is_one_of_kubernetes(values: tuple[str, ...]) -> None:
    objects = rendered("expunge", *values)
    kinds = {o["kind"] for o in objects}
    assert {"CustomResourceDefinition", "Deployment", "Role", "RoleBinding", "ServiceAccount", "Service"} <= kinds
    for each in objects:
        if each["kind"] not in ("CustomResourceDefinition", "ServiceMonitor"):
            kubernetes_validate.validate(each, "1.34", strict=True)


def test_each_watched_namespace_gets_what_steps_need_there() -> None:
    objects = rendered("expunge", *EVERYTHING)
    for kind in ("Role", "RoleBinding"):
        assert [o["metadata"]["namespace"] for o in of_kind(objects, kind)] == ["team-a", "team-b"]
    accounts = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in of_kind(objects, "ServiceAccount")}
    assert accounts == {("expunge", "expunge"), ("team-a", "expunge-jobs"), ("team-b", "expunge-jobs")}
    policies = {o["metadata"]["namespace"] for o in of_kind(objects, "NetworkPolicy")}
    assert policies == {"team-a", "team-b", "expunge"}
    assert {s["namespace"] for o in of_kind(objects, "RoleBinding") for s in o["subjects"]} == {"expunge"}


def test_images_by_digest_and_credentials_by_reference() -> None:
    digest = "sha256:" + "a" * 64
    objects = rendered(
        "expunge",
        "store.existingSecret=s3",
        "jobs.image.registry=reg.test",
        f"jobs.image.digest={digest}",
        "operator.image.tag=v9",
    )
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "expunge-controller:v9"
    assert f"--image=reg.test/expunge-jobs@{digest}" in container["args"]
    refs = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"] if "valueFrom" in e}
    assert {n: not r.get("optional", False) for n, r in refs.items()} == STORE_KEYS, "those of a step, and no others"
    assert {(r["name"], r["key"]) for r in refs.values()} == {("s3", name) for name in STORE_KEYS}
    assert "envFrom" not in container
    assert "--secret=s3" in container["args"]
    assert of_kind(objects, "Secret") == []


def test_steps_go_by_the_same_proxy_and_certificate_as_the_operator() -> None:
    (deployment,) = of_kind(rendered("expunge", *EVERYTHING), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"--pod-proxy=HTTPS_PROXY=http://proxy:3128", "--pod-ca-bundle=ca"} <= set(container["args"])
    given = serve_parser().parse_args(container["args"])  # whatever the chart says, the program knows
    assert given.pod_proxy == [("HTTPS_PROXY", "http://proxy:3128")]
    assert given.namespace == ["team-a", "team-b"]


def test_what_the_operator_reads_has_bounds_and_no_word_of_a_value_is_expanded() -> None:
    word = "http://me:pa$(HOME)$$@proxy"
    given = (
        "limits.trials=2000000",
        "limits.inputSize=1Gi",
        "hub.endpoint=https://hub.test/$(HOME)",
        f"proxy.http={word}",
    )
    (deployment,) = of_kind(rendered("expunge", *given), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    read = [expanded(a, {"HOME": "/root"}) for a in container["args"]]
    parsed = serve_parser().parse_args(read)
    assert (parsed.max_trials, parsed.max_input, parsed.max_object) == (2_000_000, "1Gi", "32Mi")
    assert parsed.pod_proxy == [("HTTP_PROXY", word)]
    values = {e["name"]: expanded(e["value"], {"HOME": "/root"}) for e in container["env"] if "value" in e}
    assert (values["HTTP_PROXY"], values["HF_ENDPOINT"]) == (word, "https://hub.test/$(HOME)")
    (state,) = [m["mountPath"] for m in container["volumeMounts"] if parsed.state.startswith(m["mountPath"])]
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}} in deployment["spec"]["template"]["spec"]["volumes"]
    assert state == "/tmp"


def test_a_release_of_before_the_limits_keeps_its_values() -> None:
    (deployment,) = of_kind(rendered("expunge", "limits=null"), "Deployment")
    parsed = serve_parser().parse_args(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    assert (parsed.max_trials, parsed.max_input) == (5000, "64Mi")


def test_without_the_definition_for_a_second_release() -> None:
    assert of_kind(rendered("expunge", "crds.enabled=false"), "CustomResourceDefinition") == []


@pytest.fixture
def team(plane: ControlPlane, namespace: str) -> Iterator[str]:
    yield namespace
    helm("uninstall", "expunge", "--namespace", namespace, plane=plane)


def install(plane: ControlPlane, namespace: str, *more: str, name: str = "expunge", chart: Path = CHART) -> None:
    done = helm(
        "upgrade",
        "--install",
        name,
        str(chart),
        "--namespace",
        namespace,
        "--set",
        "store.uri=s3://bucket",
        *more,
        plane=plane,
    )
    assert done.returncode == 0, done.stderr


def test_installed_upgraded_uninstalled_and_installed_again(plane: ControlPlane, team: str, site: Site) -> None:
    """The definition, and with it what people have asked for, outlives a release."""
    plane.kubectl("delete", "crd", "experiments.expunge.dev", "--ignore-not-found")
    install(plane, team)
    plane.kubectl("wait", "--for=condition=Established", "crd/experiments.expunge.dev", "--timeout=30s")
    plane.kubectl("apply", "-f", "-", give=yaml.safe_dump(experiment(site)))
    install(plane, team, "--set", "operator.maxJobs=7")
    deployment = plane.get("deployment", "expunge", "-n", team)
    assert "--max-jobs=7" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert helm("uninstall", "expunge", "--namespace", team, plane=plane).returncode == 0
    assert plane.get("experiment", "tiny", "-n", site.namespace)["spec"]["merge"]["method"] == "ties"
    install(plane, team)
    install(plane, team, "--set", "crds.enabled=false", "--set", "jobs.serviceAccount.create=false", name="another")
    assert {d["metadata"]["name"] for d in plane.get("deployments", "-n", team)["items"]} == {"expunge", "another"}
    assert helm("uninstall", "another", "--namespace", team, plane=plane).returncode == 0


NEWER = """
from expunge_jobs.tasks import tasks as task
task.KIND_VERSIONS["merge"] += 1
from expunge_controller.serve import main
raise SystemExit(main())
"""


def older_chart(folder: Path) -> Path:
    """Of a release whose experiments could not be suspended and had no report."""
    shutil.copytree(CHART, folder)
    definition = resource_definition()
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["suspend"], spec["resources"]["properties"]["report"]
    (folder / "files" / "crd.yaml").write_text(yaml.safe_dump(definition))
    chart = folder / "Chart.yaml"
    chart.write_text(re.sub(r"(?m)^version: .*", "version: 0.0.1", chart.read_text()))
    return folder


def test_upgraded_under_an_experiment_at_work(plane: ControlPlane, team: str, site: Site, tmp_path: Path) -> None:
    """Chart, definition and program. The generation at work keeps its keys and its image; the next one is the newer
    program's.
    """
    plane.kubectl("delete", "crd", "experiments.expunge.dev", "--ignore-not-found")
    watched = ("--set", f"watchNamespaces={{{site.namespace}}}")
    install(plane, team, *watched, chart=older_chart(tmp_path / "older"))
    plane.kubectl("wait", "--for=condition=Established", "crd/experiments.expunge.dev", "--timeout=30s")
    account = plane.kubeconfig_of(f"system:serviceaccount:{team}:expunge", "system:serviceaccounts")
    older = Operating(site, kubeconfig=account)
    newer = Operating(site, "--image", "registry.test/expunge-jobs:2", kubeconfig=account, program=("-c", NEWER))
    try:
        older.begin()
        given = slower(site)
        apply(site, given)
        site.training("memorize")
        older.end(signal.SIGKILL)
        install(plane, team, *watched)
        field = "jsonpath={.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.suspend.type}"
        shown = plane.kubectl("get", "crd", "experiments.expunge.dev", "-o", field)
        assert shown == "boolean", "the definition is the newer one"
        newer.begin()
        found = wait_until(site, "Complete", seconds=180)
        assert set(attempts(site.objects).values()) == {1}, "a step whose version is newer by now was made as planned"
        images = {j["spec"]["template"]["spec"]["containers"][0]["image"] for j in site.get("jobs")}
        assert images == {found["image"]} == {site.image}
        given["spec"]["merge"]["density"] = 0.5
        apply(site, given)
        until(lambda: status(site).get("observedGeneration") == 2, 60)
        assert status(site)["image"] == "registry.test/expunge-jobs:2"
    finally:
        older.close()
        newer.close()


def test_the_operators_pod_is_restricted(plane: ControlPlane, namespace: str) -> None:
    (deployment,) = of_kind(rendered(namespace), "Deployment")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": namespace},
        "spec": deployment["spec"]["template"]["spec"] | {"serviceAccountName": "default"},
    }
    plane.kubectl("apply", "--dry-run=server", "-f", "-", give=yaml.safe_dump(pod))


def test_whoever_may_edit_may_ask_for_experiments_and_nothing_more(plane: ControlPlane, site: Site) -> None:
    install_definition(plane)
    identity(plane, site.namespace)
    plane.kubectl("create", "rolebinding", "ada", "--clusterrole=edit", "--user=ada", "-n", site.namespace)
    ada = plane.kubeconfig_of("ada")

    def kubectl(*words: str, give: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(binary("kubectl")), "--kubeconfig", str(ada), "-n", site.namespace, *words],
            input=give,
            capture_output=True,
            text=True,
            timeout=60,
        )

    wanted: Object = experiment(site)
    for _ in range(50):  # the roles are joined by a controller of the cluster
        if (done := kubectl("apply", "-f", "-", give=yaml.safe_dump(wanted))).returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert "tiny" in kubectl("get", "experiments").stdout
    for verb, what in (("patch", "experiments"), ("update", "experiments")):
        assert kubectl("auth", "can-i", verb, what, "--subresource=status").stdout.strip() == "no"
    assert kubectl("auth", "can-i", "create", "clusterroles").stdout.strip() == "no"
    assert "Whose architecture" in kubectl("explain", "experiment.spec.memorize.architecture").stdout
    assert "See `expunge list methods`" in kubectl("explain", "exp.spec.merge").stdout
    watch = kubectl("get", "exp", "tiny", "--watch", "--request-timeout=2s")
    assert "tiny" in watch.stdout
    for verb, what in (("create", "jobs"), ("delete", "secrets"), ("watch", "pods")):  # edit's own, as it was
        assert kubectl("auth", "can-i", verb, what).stdout.strip() == "yes"
    rules = [r for o in of_kind(rendered("team"), "ClusterRole") for r in o["rules"]]
    assert {(g, r) for rule in rules for g in rule["apiGroups"] for r in rule["resources"]} == {
        ("expunge.dev", "experiments"),
        ("expunge.dev", "experiments/status"),
    }
    assert kubectl("delete", "experiment", "tiny").returncode == 0


def test_the_api_server_refuses_what_the_command_refuses(plane: ControlPlane, site: Site, tmp_path: Path) -> None:
    """Wherever a schema can tell, and in words that say what is wrong."""
    install_definition(plane)
    good = experiment(site)
    assert _refusal(plane, good) == ""
    over = good["spec"]["specialists"]["over"]
    wrongs: dict[str, tuple[Object, str]] = {
        "unknown field": ({"modle": "x"}, "modle"),
        "unknown preset": ({"specialists": good["spec"]["specialists"] | {"over": over | {"preset": "ovr"}}}, "preset"),
        "a rate of 0": (
            {"specialists": good["spec"]["specialists"] | {"over": over | {"learning_rate": 0}}},
            "learning_rate",
        ),
        "one specialist": ({"specialists": {"over": over}}, "a merge needs two or more specialists"),
        "a reserved name": ({"specialists": good["spec"]["specialists"] | {"base": over}}, "choose another name"),
        "two ranks": (
            {"specialists": good["spec"]["specialists"] | {"over": over | {"rank": 5}}},
            "different rank cannot be merged",
        ),
        "no model": ({"memorize": None}, "neither model nor memorize"),
        "two starts": ({"model": "hf://org/name"}, "give one of the two"),
        "weights of nobody": ({"merge": {"method": "ties", "weights": {"ovre": 1.0}}}, "names no specialist"),
        "both": ({"baselines": {"over": over}}, "each model has a name of its own"),
        "a volume of both kinds": (
            {"kubernetes": {"volumes": [{"mount": "/mnt/x", "claim": "c", "size": "1Gi"}]}},
            "a claim, or has a size",
        ),
        "a mount over the code": ({"kubernetes": {"volumes": [{"mount": "/opt", "claim": "c"}]}}, "mount"),
        "a quantity": ({"resources": {"merge": {"memory": "16GB"}}}, "memory"),
    }
    for name, (change, said) in wrongs.items():
        spec = {k: v for k, v in {**good["spec"], **change}.items() if v is not None}
        refusal = _refusal(plane, good | {"spec": spec})
        assert said in refusal, f"{name}: {refusal or 'accepted'}"
        file = tmp_path / "wrong.yaml"
        file.write_text(yaml.safe_dump(good | {"spec": spec}))
        assert _command(file) == 2, name


def _refusal(plane: ControlPlane, resource: Object) -> str:
    done = subprocess.run(
        [str(binary("kubectl")), "--kubeconfig", str(plane.kubeconfig), "create", "--dry-run=server", "-f", "-"],
        input=yaml.safe_dump(resource),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "" if done.returncode == 0 else done.stderr


def _command(file: Path) -> int:
    from expunge_controller.cli.main import main

    return main(["plan", str(file), "--store", str(file.parent / "store")])
