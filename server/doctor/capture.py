"""What the probes read, as plain values; every check is a function of these and of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.neuron.artifacts import Manifest
from models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Process:
    """A process that holds something."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """/dev/neuronN. `usable`: this user may read and write it."""

    path: str
    owner: str
    group: str
    mode: str
    usable: bool


@dataclass(frozen=True, slots=True)
class NeuronDevice:
    """One device of `neuron-ls`: NeuronCores, bytes of memory, and the processes on it."""

    index: int
    cores: int
    memory: int
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class Devices:
    """The nodes, and what is known of who holds them. `listed` None: neuron-ls is missing, or could not be read."""

    nodes: tuple[DeviceNode, ...] = ()
    listed: tuple[NeuronDevice, ...] | None = None
    holders: tuple[Process, ...] = ()


@dataclass(frozen=True, slots=True)
class Driver:
    """Versions of the kernel module: of the file that would be loaded (modinfo), and of what is loaded."""

    installed: str = ""
    loaded: str = ""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter that workers run in. `error`: it could not be asked. `packages`: versions of what is installed.

    `import_error`: what importing transformers_neuronx said ("" when it worked or was not tried); `library`: where it
    lies.
    """

    python: str
    version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    import_error: str = ""
    library: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Port:
    """The listening socket as it would be. `error` "": it is free."""

    error: str = ""
    holder: Process | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the host."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class DiskRead:
    """A short read of a checkpoint's file."""

    path: str
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Instance:
    """What the machine says of itself; "" where it says nothing."""

    vendor: str = ""
    type: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's directory. `problems`: why it cannot be loaded. `spec` None: config.json cannot be read."""

    path: str
    size: int = 0
    problems: tuple[str, ...] = ()
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """A directory of compiled artifacts: those whose manifest can be read, and the broken ones by their error."""

    path: str
    manifests: tuple[tuple[str, Manifest], ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capture:
    """The machine at one moment. Interpreters are keyed by what the configuration calls them, the rest by model id."""

    devices: Devices
    driver: Driver
    system_packages: Mapping[str, str]
    interpreters: Mapping[str, Interpreter]
    environment: Mapping[str, str]
    memory: Memory
    disk: DiskRead | None
    port: Port
    instance: Instance
    checkpoints: Mapping[str, Checkpoint]
    stores: Mapping[str, Store]
