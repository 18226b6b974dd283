"""How many threads the runtime starts, on machines that are folders: a /proc and a /sys written by each test."""

import os
from pathlib import Path

import pytest

from vit_runtime.threads import CpuBudget, cpu_budget, physical_cores

pytestmark = pytest.mark.unit


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def hyper_threaded(root: Path, cores: int) -> Path:
    """A machine whose core n offers the logical CPUs n and n + cores, as Linux numbers them."""
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return write(root, {topology.format(cpu): f"{cpu % cores},{cpu % cores + cores}" for cpu in range(2 * cores)})


def test_hyper_thread_siblings_count_once(tmp_path):
    assert cpu_budget(hyper_threaded(tmp_path, 4), range(8)) == CpuBudget(logical=8, physical=4, quota=None)


def test_only_cores_in_the_affinity_mask_count(tmp_path):
    root = hyper_threaded(tmp_path, 4)
    assert cpu_budget(root, [0, 4, 1]).physical == 2  # both threads of core 0, one of core 1
    assert cpu_budget(root, [0, 1, 2]).physical == 3


def test_cores_of_two_packages_are_told_apart_without_a_list_of_siblings(tmp_path):
    files = {}
    for cpu in range(4):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"] = str(cpu // 2)
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"] = "0"
    assert cpu_budget(write(tmp_path, files), range(4)).physical == 2


def test_without_a_topology_every_logical_cpu_is_a_core(tmp_path):
    assert cpu_budget(tmp_path, range(6)) == CpuBudget(logical=6, physical=6, quota=None)


@pytest.mark.parametrize(
    ("cpu_max", "quota", "cores"),
    [("max 100000", None, 8), ("400000 100000", 4.0, 4), ("150000 100000", 1.5, 1), ("50000 100000", 0.5, 1), ("3200000 100000", 32.0, 8)],
)
def test_a_version_2_quota_is_rounded_down_but_never_below_one(tmp_path, cpu_max, quota, cores):
    root = write(tmp_path, {"proc/self/cgroup": "0::/app", "sys/fs/cgroup/app/cpu.max": cpu_max})
    budget = cpu_budget(root, range(8))
    assert (budget.quota, budget.cores) == (quota, cores)


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_version_1_quota_is_respected(tmp_path, controllers):
    folder = f"sys/fs/cgroup/{controllers}/app"
    files = {"proc/self/cgroup": f"4:{controllers}:/app\n3:memory:/other\n0::/", f"{folder}/cpu.cfs_quota_us": "250000"}
    assert cpu_budget(write(tmp_path, files | {f"{folder}/cpu.cfs_period_us": "100000"}), range(8)).cores == 2


def test_no_version_1_quota_is_no_limit(tmp_path):
    files = {"proc/self/cgroup": "1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    assert cpu_budget(write(tmp_path, files), range(8)).quota is None


def test_the_tightest_of_the_cgroups_above_decides(tmp_path):
    files = {"proc/self/cgroup": "0::/pod/app", "sys/fs/cgroup/pod/app/cpu.max": "600000 100000"}
    assert cpu_budget(write(tmp_path, files | {"sys/fs/cgroup/pod/cpu.max": "300000 100000"}), range(8)).cores == 3


def test_a_limit_at_the_top_of_a_containers_tree_is_found_though_the_hosts_path_is_missing(tmp_path):
    files = {"proc/self/cgroup": "0::/kubepods/pod1/app", "sys/fs/cgroup/cpu.max": "200000 100000"}
    assert cpu_budget(write(tmp_path, files), range(8)).cores == 2


def test_a_path_outside_the_cgroup_namespace_falls_back_to_the_top_of_the_tree(tmp_path):
    files = {"proc/self/cgroup": "0::/../app", "sys/fs/cgroup/app/cpu.max": "100000 100000", "sys/fs/cgroup/cpu.max": "200000 100000"}
    assert cpu_budget(write(tmp_path, files), range(8)).cores == 2


@pytest.mark.parametrize("text", ["", "nonsense", "0::", "a:b", "1:cpu:/\n\n"])
def test_damaged_files_limit_nothing(tmp_path, text):
    root = write(tmp_path, {"proc/self/cgroup": text, "sys/fs/cgroup/cpu.max": "100 0", "sys/fs/cgroup/cpu/cpu.max": "many 100000"})
    assert cpu_budget(root, range(3)).cores == 3


def test_this_machine_has_at_least_one_core_and_no_more_than_its_logical_cpus():
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
