"""What the kernel offers, as probed, as listed, and on this very host."""

import dataclasses

import pytest

from ramet.doctor.findings import Level, worst
from ramet.doctor.kernel import (
    Features,
    check_features,
    check_modules,
    check_nftables,
    check_userfaultfd_policy,
    judge_features,
    module_state,
    probe_features,
)
from ramet.doctor.subject import Subject
from tests.doctor.made_host import MadeHost

ALL = Features(
    memfd_seals=True, pidfd=True, openat2=True, pagemap_scan=True, userfaultfd=True, write_watch=True
)
LEVELS = {
    "memfd_seals": Level.FAIL,
    "pidfd": Level.FAIL,
    "openat2": Level.FAIL,
    "pagemap_scan": Level.INFO,
    "userfaultfd": Level.WARN,
    "write_watch": Level.INFO,
}


def test_a_kernel_with_everything_is_one_line() -> None:
    [finding] = judge_features(ALL, "6.18")
    assert (finding.code, finding.level) == ("kernel", Level.OK)


def test_every_feature_has_a_level() -> None:
    assert {field.name for field in dataclasses.fields(Features)} == LEVELS.keys()


@pytest.mark.parametrize(("name", "level"), LEVELS.items())
def test_each_missing_feature_is_told_as_badly_as_it_hurts(name: str, level: Level) -> None:
    found = list(judge_features(dataclasses.replace(ALL, **{name: False}), "5.4"))
    [missing] = [finding for finding in found if finding.code == f"no_{name}"]
    assert missing.level is level
    assert any(finding.code == "kernel" for finding in found) == (level is not Level.FAIL)


def test_the_kernel_the_tests_run_on_has_what_it_takes(host: MadeHost) -> None:
    features = probe_features()
    assert features.memfd_seals
    assert features.pidfd
    assert features.openat2
    assert worst(check_features(Subject(), host.view())) is not Level.FAIL


@pytest.mark.parametrize(("value", "code"), [("0", "userfaultfd_root_only"), ("1", "userfaultfd_for_all")])
def test_the_policy_for_page_faults_is_told(host: MadeHost, value: str, code: str) -> None:
    host.file("/proc/sys/vm/unprivileged_userfaultfd", value + "\n")
    [finding] = check_userfaultfd_policy(Subject(), host.view())
    assert (finding.code, finding.level) == (code, Level.INFO)


def test_modules_are_loaded_loadable_absent_or_not_listed(host: MadeHost) -> None:
    host.file("/proc/sys/kernel/osrelease", "6.1.0\n")
    assert module_state(host.view(), "bridge") == "unknown"
    host.file("/lib/modules/6.1.0/modules.builtin", "kernel/drivers/net/tun.ko\n")
    host.file("/lib/modules/6.1.0/modules.dep", "kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz\n")
    host.folder("/sys/module/nf_tables")
    states = {name: module_state(host.view(), name) for name in ("bridge", "tun", "nf_tables", "vhost_net")}
    assert states == {"bridge": "loadable", "tun": "loaded", "nf_tables": "loaded", "vhost_net": "absent"}


def test_a_host_without_tun_and_bridge_fails(host: MadeHost) -> None:
    host.file("/proc/sys/kernel/osrelease", "6.1.0\n")
    host.file("/lib/modules/6.1.0/modules.builtin")
    host.file("/lib/modules/6.1.0/modules.dep")
    codes = [finding.code for finding in check_modules(Subject(), host.view())]
    assert codes == [
        "tun_missing",
        "bridge_missing",
        "limits_incomplete",
        "vhost_net_missing",
        "vhost_vsock_missing",
    ]


def test_what_limits_traffic_is_named_where_it_lacks(host: MadeHost) -> None:
    names = ("ifb", "sch_tbf", "sch_ingress", "cls_u32")
    host.file("/proc/sys/kernel/osrelease", "6.1.0\n")
    host.file("/lib/modules/6.1.0/modules.builtin", "".join(f"kernel/net/{name}.ko\n" for name in names))
    host.file("/lib/modules/6.1.0/modules.dep")
    found = {finding.code: finding for finding in check_modules(Subject(), host.view())}
    assert "has no act_mirred:" in found["limits_incomplete"].message
    host.folder("/sys/module/act_mirred")
    assert "limits_incomplete" not in {finding.code for finding in check_modules(Subject(), host.view())}


def test_a_kernel_that_refuses_our_rules_is_quoted(host: MadeHost) -> None:
    host.program("nft", "echo 'Error: Could not process rule: Operation not supported' >&2; exit 1")
    [finding] = check_nftables(Subject(), host.view())
    assert (finding.code, finding.level) == ("nftables_incomplete", Level.FAIL)
    assert "Operation not supported" in finding.message


def test_without_root_nothing_is_said_about_nftables(host: MadeHost) -> None:
    host.program("nft", "exit 1")
    [finding] = check_nftables(Subject(), host.view(is_root=False))
    assert (finding.code, finding.level) == ("nftables_not_seen", Level.INFO)
