"""Others' rules: walked as the kernel does, on rulesets as nft prints them and in a real namespace."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType
from typing import Any

import pytest

from ramet.doctor.findings import Level
from ramet.doctor.host import HostView
from ramet.doctor.network import (
    check_dns,
    check_firewalls,
    check_forwarding,
    check_subnet,
    judge_legacy,
    judge_ruleset,
)
from ramet.doctor.subject import Subject
from ramet.net.bridge import BridgeConfig
from ramet.net.firewall import Firewall
from tests.doctor.made_host import MadeHost
from tests.net.namespaces import own_namespace, run_ip

BRIDGE = BridgeConfig()
UPLINK = "eth0"
Rule = list[dict[str, Any]]


def matching(key: str, value: Any, operator: str = "==") -> dict[str, Any]:
    left = {"ct": {"key": "state"}} if key == "ct state" else {"meta": {"key": key}}
    return {"match": {"op": operator, "left": left, "right": value}}


ACCEPT: Rule = [{"counter": {"packets": 1, "bytes": 1}}, {"accept": None}]
DROP: Rule = [{"drop": None}]
REJECT: Rule = [{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]
OUT: Rule = [matching("iifname", "rmtbr0"), *ACCEPT]
BACK: Rule = [matching("oifname", "rmtbr0"), *ACCEPT]
ESTABLISHED: Rule = [matching("ct state", {"set": ["established", "related"]}, "in"), *ACCEPT]
UNKNOWN: Rule = [{"xt": {"type": "match", "name": "conntrack"}}, *ACCEPT]


def ruleset(
    policy: str,
    *rules: Rule,
    family: str = "ip",
    table: str = "filter",
    chains: Mapping[str, list[Rule]] = MappingProxyType({}),
) -> str:
    """Return what nft prints for a table with a chain FORWARD at the hook, and `chains` it jumps to."""
    base = {"family": family, "table": table, "name": "FORWARD", "type": "filter", "hook": "forward"}
    listed: list[dict[str, Any]] = [
        {"metainfo": {"json_schema_version": 1}},
        {"table": {"family": family, "name": table}},
        {"chain": {**base, "prio": 0, "policy": policy}},
    ]
    for name, members in {"FORWARD": list(rules), **chains}.items():
        if name != "FORWARD":
            listed.append({"chain": {"family": family, "table": table, "name": name}})
        place = {"family": family, "table": table, "chain": name}
        listed += [{"rule": {**place, "expr": expressions}} for expressions in members]
    return json.dumps({"nftables": listed})


def jump(chain: str, *matches: dict[str, Any]) -> Rule:
    return [*matches, {"jump": {"target": chain}}]


SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
SUBNET_RULE: Rule = [
    {"match": {"op": "==", "left": SOURCE, "right": {"prefix": {"addr": "10.100.0.0", "len": 16}}}},
    *ACCEPT,
]
RANGE_RULE: Rule = [
    {"match": {"op": "==", "left": SOURCE, "right": {"range": ["10.0.0.0", "10.255.255.255"]}}},
    *DROP,
]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (json.dumps({"nftables": []}), "firewall"),
        (ruleset("accept"), "firewall"),
        (ruleset("drop"), "firewall_drops"),
        (ruleset("drop", family="inet", table="strict"), "firewall_drops"),
        (ruleset("drop", family="ip6"), "firewall"),
        (ruleset("drop", OUT, BACK), "firewall"),
        (ruleset("drop", OUT), "firewall_drops"),  # The answers do not come back.
        (ruleset("drop", OUT, ESTABLISHED), "firewall"),
        (ruleset("drop", SUBNET_RULE, ESTABLISHED), "firewall"),
        (ruleset("accept", RANGE_RULE), "firewall_drops"),
        (ruleset("drop", [matching("iifname", "rmt*"), *ACCEPT], BACK), "firewall"),
        (ruleset("drop", [matching("iifname", {"set": ["docker0", "rmtbr0"]}), *ACCEPT], BACK), "firewall"),
        (ruleset("drop", [matching("iifname", "docker0"), *ACCEPT], BACK), "firewall_drops"),
        (ruleset("accept", [matching("iifname", UPLINK, "!="), *DROP]), "firewall_drops"),
        (ruleset("accept", [matching("iifname", "docker0"), *DROP]), "firewall"),
        # Docker's own chains: what DOCKER-USER accepts never comes to the policy.
        (ruleset("drop", jump("DOCKER-USER"), chains={"DOCKER-USER": [OUT, BACK]}), "firewall"),
        (
            ruleset("drop", jump("DOCKER-USER"), chains={"DOCKER-USER": [[{"return": None}]]}),
            "firewall_drops",
        ),
        (ruleset("accept", jump("A"), chains={"A": [jump("B")], "B": [DROP]}), "firewall_drops"),
        (ruleset("accept", jump("A", matching("iifname", "docker0")), chains={"A": [DROP]}), "firewall"),
        # firewalld's way: the policy accepts, the last rule rejects.
        (ruleset("accept", ESTABLISHED, REJECT, family="inet", table="firewalld"), "firewall_drops"),
        (ruleset("accept", ESTABLISHED, OUT, REJECT, family="inet", table="firewalld"), "firewall"),
        # What cannot be read from here may go either way.
        (ruleset("drop", UNKNOWN), "firewall_may_drop"),
        (ruleset("drop", [{"xt": None}, *ACCEPT]), "firewall_may_drop"),
        (ruleset("accept", UNKNOWN), "firewall"),
        (ruleset("drop", [matching("iifname", "@trusted"), *ACCEPT], BACK), "firewall_may_drop"),
        (ruleset("drop", [matching("iifname", "lo"), *UNKNOWN], OUT, BACK), "firewall"),
        (ruleset("accept", [{"xt": {"type": "target", "name": "LOG"}}]), "firewall"),
        (ruleset("accept", [{"xt": {"type": "target", "name": "REJECT"}}]), "firewall_may_drop"),
        (
            ruleset("accept", jump("A"), chains={"A": [jump("A")]}),
            "firewall_may_drop",
        ),  # No kernel has such a loop.
        ("no JSON", "firewall_unread"),
        ("[]", "firewall_unread"),
        ('{"nftables": [{"rule": {"expr": []}}]}', "firewall_unread"),
    ],
)
def test_a_guests_packet_and_its_answer_are_walked_through_the_rules(text: str, code: str) -> None:
    assert {finding.code for finding in judge_ruleset(BRIDGE, UPLINK, text)} == {code}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (
            ruleset("drop", jump("DOCKER-USER"), chains={"DOCKER-USER": []}),
            "iptables -I DOCKER-USER -i rmtbr0 -j ACCEPT",
        ),
        (
            ruleset("drop", jump("ufw-user-forward"), chains={"ufw-user-forward": []}),
            "ufw route allow in on rmtbr0",
        ),
        (
            ruleset("accept", REJECT, family="inet", table="firewalld"),
            "firewall-cmd --permanent --zone=trusted",
        ),
        (ruleset("drop"), "iptables -I FORWARD -i rmtbr0 -j ACCEPT"),
        (
            ruleset("drop", family="inet", table="own"),
            "nft insert rule inet own FORWARD iifname rmtbr0 accept",
        ),
    ],
)
def test_the_remedy_speaks_the_language_of_whoever_made_the_rules(text: str, remedy: str) -> None:
    [finding] = judge_ruleset(BRIDGE, UPLINK, text)
    assert finding.level is Level.FAIL
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("printed", "is_told"),
    [
        ("-P FORWARD ACCEPT\n", False),
        ("-P FORWARD DROP\n", True),
        ("-P FORWARD ACCEPT\n-A FORWARD -j REJECT\n", True),
        ("-P FORWARD DROP\n-A FORWARD -i rmtbr0 -j ACCEPT\n-A FORWARD -o rmtbr0 -j ACCEPT\n", False),
        ("", True),  # The table is in use, and there is no program to read it with.
    ],
)
def test_rules_of_the_old_iptables_are_told(printed: str, is_told: bool) -> None:
    assert [finding.code for finding in judge_legacy(BRIDGE, printed)] == ["iptables_legacy"] * is_told


@pytest.mark.parametrize(("value", "code"), [("1", "ip_forward"), ("0", "ip_forward_off")])
def test_the_forwarding_switch_is_told(host: MadeHost, value: str, code: str) -> None:
    host.file("/proc/sys/net/ipv4/ip_forward", value)
    assert [finding.code for finding in check_forwarding(Subject(), host.view())] == [code]


@pytest.mark.parametrize(
    ("servers", "code"), [(("1.1.1.1",), "dns"), ((), "dns_none"), (("127.0.0.53",), "dns_loopback")]
)
def test_name_servers_that_guests_cannot_ask_are_told(
    host: MadeHost, servers: tuple[str, ...], code: str
) -> None:
    subject = Subject(bridge=BridgeConfig(dns=tuple(map(IPv4Address, servers))))
    assert [finding.code for finding in check_dns(subject, host.view())] == [code]


def nft(*commands: str) -> None:
    subprocess.run(["nft", "-f", "-"], input="\n".join(commands), text=True, check=True, capture_output=True)


def iptables(arguments: str) -> None:
    subprocess.run(["iptables", *arguments.split()], check=True, capture_output=True)


def firewall_codes() -> list[str]:
    return [finding.code for finding in check_firewalls(Subject(), HostView())]


@pytest.mark.netns
class TestInANamespace:
    """On the real kernel, with real rules."""

    @pytest.fixture(autouse=True)
    def own_network(self) -> Iterator[None]:
        with own_namespace():
            run_ip("link add up0 type bridge")
            run_ip("address add 192.0.2.2/24 dev up0")
            run_ip("link set up0 up")
            run_ip("route add default via 192.0.2.1")
            yield

    def test_a_forward_policy_that_drops_is_recognised_until_it_lets_our_bridge_through(self) -> None:
        assert firewall_codes() == ["firewall"]
        nft(
            "add table inet strict",
            "add chain inet strict f { type filter hook forward priority 0; policy drop; }",
        )
        [finding] = check_firewalls(Subject(), HostView())
        assert (finding.code, finding.level) == ("firewall_drops", Level.FAIL)
        nft(*(command.removeprefix("nft ") for command in finding.remedy.split("; ")))
        assert firewall_codes() == ["firewall"]

    def test_rules_of_iptables_are_recognised_and_its_remedy_mends_them(self) -> None:
        iptables("-P FORWARD DROP")
        iptables("-N DOCKER-USER")
        iptables("-A DOCKER-USER -j RETURN")
        iptables("-A FORWARD -j DOCKER-USER")
        [finding] = check_firewalls(Subject(), HostView())
        assert finding.code == "firewall_drops"
        for command in finding.remedy.split("; "):
            iptables(command.removeprefix("iptables "))
        assert firewall_codes() == ["firewall"]

    @pytest.mark.anyio
    async def test_our_own_rules_let_our_guests_through(self) -> None:
        firewall = Firewall(BRIDGE)
        await firewall.open("up0")
        try:
            assert firewall_codes() == ["firewall"]
        finally:
            await firewall.close()

    @pytest.mark.anyio
    async def test_another_daemons_rules_do_not_concern_us(self) -> None:
        firewall = Firewall(
            BridgeConfig(name="other0", subnet=IPv4Network("10.101.0.0/16"), tap_prefix="oth")
        )
        await firewall.open("up0")
        try:
            assert firewall_codes() == ["firewall"]
        finally:
            await firewall.close()

    def test_a_route_into_the_guests_subnet_is_a_failure_and_another_is_none(self) -> None:
        codes = [finding.code for finding in check_subnet(Subject(), HostView())]
        assert codes == ["subnet", "uplink"]
        run_ip("route add 10.100.5.0/24 dev up0")
        [clash, _] = check_subnet(Subject(), HostView())
        assert (clash.code, clash.level) == ("subnet_clash", Level.FAIL)
        assert "up0" in clash.message

    def test_an_uplink_that_is_missing_is_told(self) -> None:
        codes = [
            finding.code for finding in check_subnet(Subject(bridge=BridgeConfig(uplink="eth9")), HostView())
        ]
        assert codes == ["subnet", "uplink_missing"]
        run_ip("route delete default")
        assert [finding.code for finding in check_subnet(Subject(), HostView())] == ["subnet", "no_uplink"]
