"""The files of examples/deploy: checked against their schemas, built, and started as they say."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cm_auth_middleware import CMAuthConfig
from cm_auth_middleware.errors import ConfigError
from cm_auth_middleware.stores import open_store
from cm_auth_middleware.testing import SimulatorServer
from tests.helpers.containers import (
    Container,
    Image,
    Network,
    build,
    enter,
    layers,
    missing,
    require,
    require_containers,
)
from tests.helpers.servers import redis_server, require_redis, until
from tests.helpers.world import SECRET_KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"
MANIFESTS = sorted(DEPLOY.glob("kubernetes/*.yaml"))
SITE = "cams.localhost"  # for which Caddy makes a certificate by itself
HEALTH = "/auth/health"
VALUES = {
    "SITE": SITE,
    "CM_AUTH_REDIRECT_URI": f"https://{SITE}/auth/callback",
    "CM_AUTH_SECRET_KEY": SECRET_KEY,
    "REDIS_PASSWORD": "correct-horse-battery",
}


def read_yaml(text: str) -> list[Any]:
    try:
        import yaml
    except ImportError:
        missing("PyYAML is not installed")
    return list(yaml.safe_load_all(text))


def documents() -> dict[tuple[str, str], Any]:
    """The Kubernetes objects as they are written, by kind and name."""
    found = [each for path in MANIFESTS for each in read_yaml(path.read_text())]
    return {(each["kind"], each.get("metadata", {}).get("name", "")): each for each in found}


def compose() -> dict[str, Any]:
    return read_yaml((DEPLOY / "compose.yaml").read_text())[0]["services"]


def unit() -> dict[str, list[str]]:
    """The [Service] section of the systemd unit: all values of each name."""
    parser = RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / "cams.service").read_text())
    return {name: value.split("\n") for name, value in parser["Service"].items()}


def filled(cm: SimulatorServer, **more: str) -> dict[str, str]:
    """The values of somebody who filled in cams.env.example."""
    values = {
        **VALUES,
        "CM_AUTH_CLIENT_ID": cm.client_id,
        "CM_AUTH_CLIENT_SECRET": cm.client_secret,
    }
    lines = (DEPLOY / "cams.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert {name for name, value in given.items() if not value} <= values.keys()
    assert values.keys() <= given.keys()
    return {**given, **values, **more}


# -- as others check them ------------------------------------------------------------------


def checked(*command: Any, **options: Any) -> str:
    program, *arguments = map(str, command)
    done = subprocess.run(
        [require(program), *arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def kustomized(tmp_path: Path, values: dict[str, str]) -> str:
    """What `kubectl apply -k` would send."""
    folder = tmp_path / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", folder)
    lines = [f"{name}={value}\n" for name, value in values.items()]
    (folder / "cams.env").write_text("".join(lines))
    return checked("kubectl", "kustomize", folder)


def test_the_manifests_are_what_kubernetes_accepts(tmp_path: Path) -> None:
    with SimulatorServer() as cm:
        built = kustomized(tmp_path, filled(cm))
    (tmp_path / "built.yaml").write_text(built)
    said = checked("kubernetes-validate", "--strict", tmp_path / "built.yaml")
    assert said.count(" passed ") == built.count("\nkind: ") == len(documents())
    # All objects got there, the Secret in place of the kustomization.
    kinds = {kind for kind, _ in documents()} - {"Kustomization"}
    assert {each["kind"] for each in read_yaml(built)} == {*kinds, "Secret"}


def test_the_compose_file_is_what_compose_accepts() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    checked("check-jsonschema", *schema, DEPLOY / "compose.yaml")


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    checked("hadolint", DEPLOY / "Dockerfile")


def test_caddy_accepts_its_file(tmp_path: Path) -> None:
    home = {**os.environ, "SITE": SITE, "HOME": f"{tmp_path}"}
    checked(
        "caddy", "validate", "--config", DEPLOY / "Caddyfile", "--adapter", "caddyfile", env=home
    )
    shown = checked("caddy", "fmt", "--diff", DEPLOY / "Caddyfile", env=home)
    assert not re.search(r"^[-+]", shown, re.M), shown


# -- what no schema knows ------------------------------------------------------------------


def test_the_variables_in_the_files_are_options() -> None:
    known = {f"CM_AUTH_{option.name.upper()}" for option in fields(CMAuthConfig)}
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            named = set(re.findall(r"\bCM_AUTH_[A-Z_]*[A-Z]\b", path.read_text()))
            assert named <= known, path


def test_every_file_is_explained() -> None:
    text = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.name not in ("README.md", ".gitignore"):
            assert f"`{path.relative_to(DEPLOY)}`" in text, path


def test_no_file_holds_a_secret_and_git_ignores_those_that_do(tmp_path: Path) -> None:
    for line in (DEPLOY / "cams.env.example").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.endswith(("_SECRET", "_KEY", "_PASSWORD", "_ID")):
            assert value == ""
    for name in (".env", "cams.env", "kubernetes/cams.env"):
        subprocess.run(["git", "check-ignore", "-q", DEPLOY / name], cwd=ROOT, check=True)


def test_ports_and_labels_agree_from_the_ingress_to_the_process() -> None:
    objects = documents()
    deployment = objects["Deployment", "cams"]["spec"]
    pod = deployment["template"]
    (container,) = pod["spec"]["containers"]
    (port,) = container["ports"]
    service = objects["Service", "cams"]["spec"]
    (served,) = service["ports"]
    backend = objects["Ingress", "cams"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    policy = objects["NetworkPolicy", "cams"]["spec"]
    assert served["targetPort"] == port["name"]
    assert backend["service"] == {"name": "cams", "port": {"name": served["name"]}}
    assert policy["ingress"][0]["ports"] == [{"port": port["name"]}]
    assert {
        container[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")
    } == {port["name"]}
    labels = pod["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        service["selector"],
        policy["podSelector"]["matchLabels"],
        objects["PodDisruptionBudget", "cams"]["spec"]["selector"]["matchLabels"],
        *(
            each["labelSelector"]["matchLabels"]
            for each in pod["spec"]["topologySpreadConstraints"]
        ),
    ):
        assert selector == labels
    redis = objects["StatefulSet", "redis"]["spec"]
    (store,) = redis["template"]["spec"]["containers"]
    (redis_port,) = store["ports"]
    (redis_served,) = objects["Service", "redis"]["spec"]["ports"]
    store_url = next(each["value"] for each in container["env"] if each["name"] == "CM_AUTH_STORE")
    assert store_url.endswith(f"@redis:{redis_served['port']}/0")
    assert redis_served["targetPort"] == redis_port["name"]
    assert {"port": redis_port["containerPort"]} in [
        each for rule in policy["egress"] for each in rule["ports"]
    ]
    redis_policy = objects["NetworkPolicy", "redis"]["spec"]
    assert redis_policy["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": labels}}],
            "ports": [{"port": redis_port["name"]}],
        }
    ]
    assert (
        redis["selector"]["matchLabels"]
        == objects["Service", "redis"]["spec"]["selector"]
        == redis_policy["podSelector"]["matchLabels"]
        == redis["template"]["metadata"]["labels"]
    )
    hosts = objects["Ingress", "cams"]["spec"]["rules"][0]["host"]
    example = (DEPLOY / "cams.env.example").read_text()
    assert f"CM_AUTH_REDIRECT_URI=https://{hosts}/auth/callback" in example


def test_no_pod_is_more_than_a_user_without_rights() -> None:
    for kind, name in (("Deployment", "cams"), ("StatefulSet", "redis")):
        pod = documents()[kind, name]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_forms_with_files_can_be_taken_though_all_else_is_read_only() -> None:
    """Starlette and Flask write what is large into a temporary file."""
    pod = documents()["Deployment", "cams"]["spec"]["template"]["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert (mount["mountPath"], mount["name"]) == ("/tmp", volume["name"])
    assert volume["emptyDir"]["sizeLimit"]
    for name in ("app1", "app2"):
        assert compose()[name]["read_only"]
        assert [each.partition(":")[0] for each in compose()[name]["tmpfs"]] == ["/tmp"]


def test_redis_evicts_nothing_and_writes_to_its_disk() -> None:
    objects = documents()
    redis = objects["StatefulSet", "redis"]["spec"]["template"]["spec"]["containers"][0]
    for command in (redis["command"] + redis["args"], compose()["redis"]["command"]):
        options = dict(zip(command[1::2], command[2::2], strict=True))
        assert options["--maxmemory-policy"] == "noeviction"
        assert options["--appendonly"] == "yes"
        assert options["--appendfsync"] == "everysec"


def test_only_the_proxy_of_the_compose_file_may_say_who_asks() -> None:
    services = compose()
    address = services["proxy"]["networks"]["edge"]["ipv4_address"]
    for name in ("app1", "app2"):
        assert services[name]["environment"]["FORWARDED_ALLOW_IPS"] == address
        assert not services[name].get("ports")
    assert services["redis"]["networks"] == ["store"]
    assert not services["redis"].get("ports")


def page() -> str:
    return (ROOT / "docs" / "deployment.md").read_text()


def test_redis_accepts_the_configuration_on_the_page() -> None:
    (block,) = re.findall(r'^```ini title="redis.conf"\n(.*?)^```$', page(), re.M | re.S)
    given = [line.split(maxsplit=1) for line in block.splitlines() if not line.startswith("#")]
    with redis_server(*(word for name, value in given for word in (f"--{name}", value))) as server:
        for name, value in given:
            if name != "maxmemory":  # which it shows in bytes
                answer = server.command("CONFIG", "GET", name)
                assert answer.endswith(f"\r\n{value}\r\n".encode()), name


def test_the_tls_options_on_the_page_are_options_of_the_stores() -> None:
    named = set(re.findall(r"`(ssl_\w+=[^`]+)`", page()))
    assert {option.partition("=")[0] for option in named} >= {"ssl_certfile", "ssl_keyfile"}
    for scheme in ("rediss://host/0", "rediss+sentinel://host/name", "rediss+cluster://host"):
        for option in named:
            open_store(f"{scheme}?{option}")
    named = set(re.findall(r"`(ssl[a-z]+=[^`]+)`", page()))
    assert {option.partition("=")[0] for option in named} >= {"sslmode", "sslcert", "sslkey"}
    for option in named:
        open_store(f"postgresql://host/db?{option}")
    for url in ("rediss://host/0?ssl_cert=x", "postgresql://host/db?ssl_certfile=x"):
        with pytest.raises(ConfigError):
            open_store(url)


# -- built and started ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image of the Dockerfile."""
    require_containers()
    with layers() as top:
        yield build(DEPLOY / "Dockerfile", ROOT, top)


@pytest.fixture
def network() -> Iterator[Network]:
    require_containers()
    with layers() as top, Network(top) as network:
        yield network


@pytest.fixture
def cm(network: Network) -> Iterator[SimulatorServer]:
    """A CameraManager that the containers reach."""
    address = "10.77.0.99"
    namespace = network.attach("camera-manager", address=address)
    anchor = network.start(namespace, address, ["sleep", "600"], {})
    server = anchor.inside(lambda: SimulatorServer(host=address, port=80))
    anchor.inside(server.start)
    yield server
    server.stop()


def interpolated(value: Any, values: dict[str, str]) -> Any:
    """Do what compose does with ${NAME:?message}."""
    if isinstance(value, dict):
        return {name: interpolated(item, values) for name, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, values) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):\?[^}]+\}", lambda match: values[match[1]], value)
    return value


def client(base_url: str) -> httpx2.Client:
    """A client of one connection after the other; it verifies no certificate."""
    return httpx2.Client(
        base_url=base_url, verify=False, timeout=30, headers={"Host": SITE, "Accept": "text/html"}
    )


def ask(container: Container, url: str) -> httpx2.Response | None:
    """Ask once; None if nothing answers."""

    def get() -> httpx2.Response | None:
        try:
            with client("") as browser:
                return browser.get(url, extensions={"sni_hostname": SITE})
        except httpx2.TransportError:
            return None

    return container.inside(get)


def answers(container: Container, url: str, *wanted: int) -> Callable[[], bool]:
    def has_answered() -> bool:
        assert container.process.poll() is None, container.log
        response = ask(container, url)
        return response is not None and response.status_code in wanted

    return has_answered


def logged_in(cm: SimulatorServer, asker: Container, base_url: str) -> dict[str, str]:
    """Log in; return the session's cookie as a header."""
    page = ask(asker, f"{base_url}/")
    assert page is not None
    assert page.status_code == 302, page.text
    login = httpx2.URL(page.headers["location"])
    assert login.host == "camera-manager"
    assert login.params["redirect_uri"] == VALUES["CM_AUTH_REDIRECT_URI"]
    code = cm.simulator.issue_code(
        "anna@example.com", login.params["redirect_uri"], login.params.get("code_challenge")
    )

    def finish() -> httpx2.Response:
        with client(base_url) as browser:
            pending = [line.split(";")[0] for line in page.headers.get_list("set-cookie")]
            return browser.get(
                "/auth/callback",
                params={"code": code, "state": login.params["state"]},
                headers={"Cookie": "; ".join(pending)},
                extensions={"sni_hostname": SITE},
            )

    done = asker.inside(finish)
    assert done.status_code in (302, 303), done.text
    cookies = [line.split(";")[0] for line in done.headers.get_list("set-cookie")]
    (session,) = [line for line in cookies if line.startswith("__Host-cm_auth=")]
    assert "Secure" in done.headers["set-cookie"]
    return {"Cookie": session}


def who(asker: Container, base_url: str, headers: dict[str, str]) -> Any:
    """What a page behind the login says."""

    def get() -> httpx2.Response:
        with client(base_url) as browser:
            return browser.get("/", headers=headers, extensions={"sni_hostname": SITE})

    return asker.inside(get)


class Fleet:
    """What the compose file starts."""

    def __init__(self, image: Image, network: Network, cm: SimulatorServer) -> None:
        program = require_redis()
        require("caddy")
        values = filled(cm)
        services = interpolated(compose(), values)
        addresses = {"redis": "10.77.0.10", "app1": "10.77.0.11", "app2": "10.77.0.12"}
        addresses["proxy"] = services["proxy"]["networks"]["edge"]["ipv4_address"]
        spaces = {
            name: network.attach(name, address=address) for name, address in addresses.items()
        }
        redis = services["redis"]
        command = [program, *redis["command"][1:], "--protected-mode", "no"]  # as in the image
        self.redis = network.start(
            spaces["redis"],
            addresses["redis"],
            command,
            redis["environment"],
            user="10002:10002",
            image=Image(network._top, folder="/data"),
            volumes=["/data"],
        )
        check = redis["healthcheck"]["test"]
        assert check[0] == "CMD-SHELL"
        inside = ["ip", "netns", "exec", spaces["redis"], "sh", "-c", check[1]]
        environment = {**os.environ, **redis["environment"]}
        until(lambda: subprocess.run(inside, env=environment, stdout=-3, stderr=-3).returncode == 0)
        self.apps = [
            network.start(
                spaces[name],
                addresses[name],
                image.command,
                {**services[name]["environment"], "CM_AUTH_BASE_URL": "http://camera-manager"},
                image=image,
                is_read_only=services[name]["read_only"],
            )
            for name in ("app1", "app2")
        ]
        for app in self.apps:
            until(answers(app, "http://127.0.0.1:8000/auth/session", 200))
        self.checks = [services[name]["healthcheck"]["test"] for name in ("app1", "app2")]
        self.spaces = spaces
        (config, *_) = services["proxy"]["volumes"]
        source, target, mode = config.split(":")
        assert mode == "ro"
        self.proxy = network.start(
            spaces["proxy"],
            addresses["proxy"],
            ["caddy", "run", "--config", target, "--adapter", "caddyfile"],
            {**services["proxy"]["environment"], "XDG_DATA_HOME": "/data", "HOME": "/data"},
            files={target: (DEPLOY / source).read_bytes()},
            volumes=["/data"],
        )
        self.url = f"https://{addresses['proxy']}"

    def healthy(self, number: int) -> bool:
        """What Docker finds out about one of the two."""
        kind, *command = self.checks[number]
        assert kind == "CMD"
        command[0] = sys.executable
        inside = ["ip", "netns", "exec", self.spaces[f"app{number + 1}"], *command]
        return subprocess.run(inside, stderr=-3).returncode == 0


@pytest.fixture
def fleet(image: Image, network: Network, cm: SimulatorServer) -> Fleet:
    return Fleet(image, network, cm)


def test_the_image_runs_as_a_user_without_a_name_and_listens_where_it_says(image: Image) -> None:
    assert image.user == "10001:10001"
    assert image.ports == [8000]
    assert image.command[image.command.index("--port") + 1] == "8000"


def test_the_image_has_the_command_that_checks_a_configuration(image: Image) -> None:
    with layers() as top:
        command = enter(top, f"{image.layer}:/", "/", image.user, True, ["cm-auth", "secret"])
        secret = subprocess.run(
            command,
            env={**image.environment, "PYTHON_FOLDER": f"{Path(sys.base_prefix) / 'bin'}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    assert len(secret) >= 32


def test_the_compose_file_serves_logins_behind_tls_and_outlives_an_instance(
    fleet: Fleet, cm: SimulatorServer
) -> None:
    until(answers(fleet.proxy, f"{fleet.url}{HEALTH}", 200))
    until(lambda: fleet.healthy(0) and fleet.healthy(1))
    session = logged_in(cm, fleet.proxy, fleet.url)
    for _ in range(4):  # both instances, in turn
        answer = who(fleet.proxy, fleet.url, session)
        assert answer.status_code == 200, answer.text
        assert "Front gate" in answer.text
    fleet.apps[0].kill()
    until(lambda: not fleet.healthy(0))
    for _ in range(4):
        assert who(fleet.proxy, fleet.url, session).status_code == 200
    assert not any(app.log.count("Traceback") for app in fleet.apps)


def test_an_instance_without_its_store_is_unready_but_alive(fleet: Fleet) -> None:
    until(lambda: fleet.healthy(0))
    fleet.redis.kill()
    until(lambda: not fleet.healthy(0))
    for app in fleet.apps:
        answer = ask(app, f"http://127.0.0.1:8000{HEALTH}")
        assert answer is not None
        assert answer.status_code == 503
        liveness = documents()["Deployment", "cams"]["spec"]["template"]["spec"]["containers"][0][
            "livenessProbe"
        ]
        alive = ask(app, f"http://127.0.0.1:8000{liveness['httpGet']['path']}")
        assert alive is not None
        assert alive.status_code == 200
        assert app.process.poll() is None


def test_two_instances_of_the_compose_file_share_a_session(
    fleet: Fleet, cm: SimulatorServer
) -> None:
    """Without the proxy, which is another test's."""
    first, second = fleet.apps
    session = logged_in(cm, first, "http://127.0.0.1:8000")
    assert who(second, "http://127.0.0.1:8000", session).status_code == 200
    stored = subprocess.run(
        ["ip", "netns", "exec", fleet.spaces["redis"], "redis-cli", "--scan"],
        env={**os.environ, "REDISCLI_AUTH": VALUES["REDIS_PASSWORD"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(stored) >= 1


def resolved(container: dict[str, Any], secret: dict[str, str]) -> dict[str, str]:
    """The environment that the kubelet gives a container."""
    environment = {}
    for source in container.get("envFrom", []):
        assert set(source) == {"secretRef"}
        environment |= secret
    defined: dict[str, str] = {}  # references see what stands before them in env, and that only
    for each in container["env"]:
        if "value" in each:
            value = re.sub(r"\$\((\w+)\)", lambda match: defined[match[1]], each["value"])
        else:
            value = secret[each["valueFrom"]["secretKeyRef"]["key"]]
        defined[each["name"]] = value
    return {**environment, **defined}


def test_the_pods_of_the_manifests_start_and_pass_their_probes(
    image: Image, network: Network, cm: SimulatorServer, tmp_path: Path
) -> None:
    built = {
        (each["kind"], each["metadata"]["name"].split("-")[0]): each
        for each in read_yaml(kustomized(tmp_path, filled(cm)))
    }
    (secret,) = [each for (kind, _), each in built.items() if kind == "Secret"]
    values = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    for kind in ("Deployment", "StatefulSet"):  # each refers to the name with the hash
        (found,) = [each for (name, _), each in built.items() if name == kind]
        assert secret["metadata"]["name"] in json.dumps(found)

    (stateful,) = [each for (kind, _), each in built.items() if kind == "StatefulSet"]
    pod = stateful["spec"]["template"]["spec"]
    (redis,) = pod["containers"]
    environment = resolved(redis, values)
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], argument)
        for argument in redis["args"]
    ]
    namespace = network.attach("redis", address="10.77.0.10")
    network.start(
        namespace,
        "10.77.0.10",
        [require_redis(), *arguments, "--protected-mode", "no"],
        environment,
        user=f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        is_read_only=redis["securityContext"]["readOnlyRootFilesystem"],
        volumes=[redis["volumeMounts"][0]["mountPath"]],
    )
    probe = ["ip", "netns", "exec", namespace, *redis["readinessProbe"]["exec"]["command"]]
    own = {**os.environ, **environment}
    until(lambda: subprocess.run(probe, env=own, stdout=-3, stderr=-3).returncode == 0)

    pod = built["Deployment", "cams"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "command" not in container  # that of the image
    (port,) = [each["containerPort"] for each in container["ports"]]
    app = network.start(
        network.attach("cams", address="10.77.0.11"),
        "10.77.0.11",
        image.command,
        {**resolved(container, values), "CM_AUTH_BASE_URL": "http://camera-manager"},
        image=image,
        user=f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        is_read_only=container["securityContext"]["readOnlyRootFilesystem"],
        volumes=[each["mountPath"] for each in container["volumeMounts"]],
    )
    url = f"http://10.77.0.11:{port}"
    until(answers(app, url + container["livenessProbe"]["httpGet"]["path"], 200))
    session = logged_in(cm, app, url)
    assert who(app, url, session).status_code == 200
    ready = ask(app, url + container["readinessProbe"]["httpGet"]["path"])
    assert ready is not None
    assert ready.status_code == 200


def test_the_unit_starts_and_serves_logins(
    image: Image, network: Network, cm: SimulatorServer
) -> None:
    service = unit()
    (line,) = service["ExecStart"]
    (store,) = service["Environment"]
    values = dict([store.split("=", 1)]) | filled(cm)
    app = network.start(
        network.attach("machine", address="10.77.0.20"),
        "10.77.0.20",
        shlex.split(line),
        {**values, "CM_AUTH_BASE_URL": "http://camera-manager"},
        image=Image(image.layer, folder=service["WorkingDirectory"][0], user="10003:10003"),
        volumes=[f"/var/lib/{service['StateDirectory'][0]}"],
        is_read_only=True,
    )
    url = "http://127.0.0.1:8000"
    until(answers(app, f"{url}/auth/session", 200))
    session = logged_in(cm, app, url)
    for _ in range(8):  # both workers
        assert who(app, url, session).status_code == 200


def test_the_unit_is_one_that_systemd_accepts_and_thinks_well_of(image: Image) -> None:
    analyze = require("systemd-analyze")
    with layers() as top:
        system = top / "up/etc/systemd/system"
        system.mkdir(parents=True)
        shutil.copy(DEPLOY / "cams.service", system)
        command = enter(
            top,
            f"{image.layer}:/",
            "/",
            "0:0",
            False,
            [analyze, "verify", "--man=no", "/etc/systemd/system/cams.service"],
        )
        own = {**image.environment, "PYTHON_FOLDER": f"{Path(sys.base_prefix) / 'bin'}"}
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cams.service" not in done.stderr
    checked(
        "systemd-analyze", "security", "--offline=true", "--threshold=15", DEPLOY / "cams.service"
    )


def test_what_is_not_filled_in_does_not_start(
    image: Image, network: Network, cm: SimulatorServer
) -> None:
    given = {**filled(cm), "CM_AUTH_SECRET_KEY": ""}
    app = network.start(
        network.attach("app", address="10.77.0.11"), "10.77.0.11", image.command, given, image=image
    )
    assert app.process.wait(60) != 0
    assert "secret_key is missing" in app.log
