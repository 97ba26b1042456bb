"""What tools and files print. neuron-ls: verbatim from a trn1.2xlarge, which has the chip layout of an inf2.xlarge, and
with a process as AWS's user guide describes it (UNVERIFIED on inf2)."""

from __future__ import annotations

from server.doctor import outputs
from server.doctor.capture import NeuronDevice, Process
from server.doctor.interpreter import read_answer

NEURON_LS = """[
    {
        "neuron_device": 0,
        "bdf": "0000:00:1e.0",
        "cpu_affinity": "0-7",
        "numa_node": "-1",
        "connected_to": null,
        "nc_count": 2,
        "memory_size": 34359738368,
        "neuroncore_ids": [
            0,
            1
        ],
        "neuron_processes": []
    }
]"""
NEURON_LS_BUSY = """[{"neuron_device":0,"bdf":"00:1f.0","connected_to":null,"nc_count":2,"memory_size":34359738368,
"neuron_processes":[{"pid":23518,"command":"neuron-app01 infer","neuron_runtime_version":"2.23.112.0"}]}]"""
MODINFO = """filename:       /lib/modules/6.8.0-1021-aws/updates/dkms/neuron.ko
alias:          pci:v00001D0Fd00007364sv*sd*bc*sc*i*
version:        2.19.64.0
license:        GPL
description:    Neuron Driver, built from SHA: abc
srcversion:     5B5B3B4B0B5B3B4B0B5B3B4
"""
DPKG = """aws-neuronx-collectives 2.23.135.0-3e70920f2
aws-neuronx-dkms 2.19.64.0
aws-neuronx-runtime-lib
"""
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 84146 1 0000000064b5159b
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 84147 1 0000000064b5159b
   2: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1605 1 0000000016000e80
"""
MEMINFO = (
    "MemTotal:       16131760 kB\nMemFree:         1200000 kB\nMemAvailable:   12000000 kB\nHugePages_Total:       0\n"
)


def test_neuron_ls() -> None:
    assert outputs.neuron_ls(NEURON_LS) == (NeuronDevice(0, 2, 34359738368, ()),)
    assert outputs.neuron_ls(NEURON_LS_BUSY) == (
        NeuronDevice(0, 2, 34359738368, (Process(23518, "neuron-app01 infer"),)),
    )


def test_a_neuron_ls_that_prints_something_else_is_unknown() -> None:
    for text in ("", "No neuron device found", "{}x", '{"devices": []}', '[{"nc_count": 2}]'):
        assert outputs.neuron_ls(text) is None


def test_the_version_of_the_driver() -> None:
    assert outputs.module_version(MODINFO) == "2.19.64.0"
    assert outputs.module_version("") == ""


def test_versions_of_packages_and_none_for_those_that_were_removed() -> None:
    assert outputs.package_versions(DPKG) == {
        "aws-neuronx-collectives": "2.23.135.0-3e70920f2",
        "aws-neuronx-dkms": "2.19.64.0",
    }
    assert outputs.package_versions("package aws-neuronx-dkms is not installed\n") == {}


def test_who_listens() -> None:
    assert outputs.listening_inodes(TCP, 8080) == {"84146"}
    assert outputs.listening_inodes(TCP, 2024) == {"1605"}
    assert outputs.listening_inodes(TCP, 443) == set()
    assert outputs.listening_inodes("", 443) == set()


def test_memory() -> None:
    assert outputs.memory(MEMINFO) == (16131760 * 1024, 12000000 * 1024)


def test_an_interpreters_answer_is_its_last_line() -> None:
    answer = '{"version": "3.10.12", "packages": {"numpy": "1.26.4"}, "import_error": "", "library": "/lib/tnx"}'
    found = read_answer("python", f"a library greets\n\n{answer}\n", "")
    assert (found.version, found.packages, found.library, found.error) == (
        "3.10.12",
        {"numpy": "1.26.4"},
        "/lib/tnx",
        "",
    )


def test_an_interpreter_without_an_answer_shows_its_last_words() -> None:
    assert read_answer("python", "", "Traceback\nImportError: broken\n").error == "ImportError: broken"
    assert read_answer("python", "no json\n", "").error == "it answered nothing"
