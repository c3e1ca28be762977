"""A forward pass runs in the memory that the one before it freed."""

import os
import platform
import subprocess
import sys

import pytest
from support.paths import TESTS

SCRIPT = """
import resource, sys, torch
sys.path.insert(0, sys.argv[1])
from support.bundles import small_model
from i3d.models.memory import reuse_freed_memory

reuse_freed_memory()
model = small_model(width=0.25).fold()
clip = torch.zeros(1, 3, 32, 112, 112)
with torch.inference_mode():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        model(clip)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults_of_a_pass(**environment):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TESTS)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc's malloc is told, and no other"
)
def test_second_pass_faults_no_pages_in_again():
    # 131,072 bytes are glibc's own threshold: the user's word, which stands.
    as_the_user_says = faults_of_a_pass(MALLOC_MMAP_THRESHOLD_="131072")
    assert as_the_user_says > 2000  # measured 9,730
    assert faults_of_a_pass() < as_the_user_says / 5  # measured 0
