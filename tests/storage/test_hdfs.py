"""What only HDFS does, or does not do."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from support.command import exit_code
from support.storage import contents

from i3d import files
from i3d.data.shards import open_dataset

pytestmark = pytest.mark.storage


def test_addresses_without_a_server(tmp_path):
    """Each fails at once with one line; without a limit hdfs-native would try for minutes."""
    pytest.importorskip("hdfs_native")
    code = (
        "import sys; from i3d import remote; from i3d.cli import main\n"
        "if 'silent' in sys.argv[2]: remote.ANSWER_SECONDS = 3\n"
        "main(['precompute', *sys.argv[1:]])"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cases = {
            "refused": ("hdfs://127.0.0.1:1", "Connection refused"),
            "silent": (f"hdfs://127.0.0.1:{silent.getsockname()[1]}", "does not answer within 3 s"),
            "unknown": ("hdfs://i3d.invalid:8020", "failed to lookup address"),
            "no port": ("hdfs://i3d", "No NameNode hosts found"),
        }
        start = time.monotonic()
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, f"{url}/videos", tmp_path / case],
                stderr=subprocess.PIPE,
                text=True,
            )
            for case, (url, _) in cases.items()
        ]
        for process, (url, reason) in zip(processes, cases.values(), strict=True):
            (line,) = process.communicate()[1].splitlines()
            assert process.returncode == 1
            assert line.startswith(f"i3d: {url}")
            assert reason in line
    assert time.monotonic() - start < 15


def test_output_that_cannot_be_written(hdfs, dataset, tmp_path, capsys):
    files.write(f"{hdfs.url}/{tmp_path.name}/out", b"a file where the folder should be")
    output = f"{hdfs.url}/{tmp_path.name}/out"
    assert exit_code("precompute", dataset, output, "--no-flow", "--classes", "kinetics400") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{output}/manifest.json" in line
    assert "Java" not in line
    assert "\tat " not in line


@pytest.mark.parametrize("character", "?#;")
def test_names_that_hdfs_native_would_cut_short(hdfs, character):
    files.write(f"{hdfs.url}/a", b"1")
    for use in (files.open_read, files.exists, files.remove):
        with pytest.raises(OSError, match=re.escape(f"a name with {character!r}")):
            use(f"{hdfs.url}/a{character}b")
    with pytest.raises(OSError, match="cannot be used on HDFS"):
        files.write(f"{hdfs.url}/a{character}b", b"2")
    assert files.read_range(f"{hdfs.url}/a", 0, 9) == b"1"


def test_a_writer_killed_before_the_rename(hdfs, dataset, tmp_path):
    """Leaves a temporary file, which the job removes when it is run again."""
    output = f"{hdfs.url}/{tmp_path.name}"
    arguments = ["precompute", str(dataset), output, "--no-flow", "--classes", "kinetics400"]
    code = (
        "import os, signal, sys; from hdfs_native.fsspec import HdfsFileSystem\n"
        "from i3d.cli import main\n"
        "rename = HdfsFileSystem.mv\n"
        "def mv(self, source, target, **options):\n"
        "    if target.endswith('.tar'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(self, source, target, **options)\n"
        "HdfsFileSystem.mv = mv\n"
        "if __name__ == '__main__': main(sys.argv[1:])"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    hidden, manifest = files.names_in(output)
    assert (files.final_name(hidden), manifest) == ("shard-00000.tar", "manifest.json")
    assert exit_code(*arguments) == 0
    names = ["failures.csv", "manifest.json", "shard-00000.json", "shard-00000.tar"]
    assert files.names_in(output) == names


def test_a_datanode_that_dies_costs_only_time(use_server, dataset, tmp_path):
    hdfs = use_server("hdfs", copy=1)
    output = f"{hdfs.url}/{tmp_path.name}"
    arguments = ["precompute", str(dataset), output, "--no-flow", "--clips-per-shard", "2"]
    assert exit_code(*arguments, "--classes", "kinetics400") == 0
    before = contents(output)
    stream = open_dataset(output).stream()
    samples = [next(stream)]
    with files.open_read(f"{output}/shard-00001.tar") as file:
        head = file.read(1000)
        os.kill(hdfs.processes["datanode-0"], signal.SIGKILL)
        assert head + file.read() == before["shard-00001.tar"]
    samples.extend(stream)
    assert len(samples) == 5
    assert contents(output) == before
