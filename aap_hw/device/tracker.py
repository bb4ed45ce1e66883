"""Asking a TVM RPC tracker which boards it has, with a limit to every wait.

TVM's own client waits a minute for a tracker that is not there, and for ever for a board that is not free.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.rpc.base import RPC_TRACKER_MAGIC, TrackerCode

from aap_hw.device.board import BoardLost, ServerAddress

# A tracker's answers are short; whatever claims to be longer is not a tracker's.
LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True)
class Registered:
    """How many boards a tracker has under a key, how many of them are free, and which other keys there are."""

    total: int
    free: int
    other_keys: tuple[str, ...]


@dataclass(frozen=True)
class Tracker:
    """A tracker and the key of the boards that are meant."""

    host: str
    port: int
    key: str
    timeout_s: float

    def __str__(self) -> str:
        return f"the tracker at {self.host}:{self.port}"

    def boards(self) -> Registered:
        """Count the boards.

        Raises
        ------
        BoardLost : the tracker does not answer, or has no board under the key.
        """
        with self._connection() as connection:
            summary = _call(connection, [TrackerCode.SUMMARY])[1]
        keys = [server["key"].partition(":")[2] for server in summary["server_info"]]
        free = summary["queue_info"].get(self.key, {"free": 0})["free"]
        others = tuple(sorted(set(keys) - {self.key}))
        if self.key not in keys:
            known = f"it has {', '.join(others)}" if others else "it has none at all"
            raise BoardLost(
                f"{self} has no board with the key '{self.key}' ({known}); start one on the board with: python -m "
                f"tvm.exec.rpc_server --tracker {self.host}:{self.port} --key {self.key}"
            )
        return Registered(keys.count(self.key), free, others)

    def request(self) -> ServerAddress:
        """Take a free board for oneself; it is free again when its session has ended.

        Raises
        ------
        BoardLost : the tracker does not answer, or no board is free.
        """
        if self.boards().free == 0:
            raise BoardLost(
                f"{self} has no free board with the key '{self.key}'; wait until one is, or restart its server"
            )
        with self._connection() as connection:
            host, port, key = _call(connection, [TrackerCode.REQUEST, self.key, "", 1])[1]
        return ServerAddress(host, port, (key,))

    @contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        try:
            with socket.create_connection((self.host, self.port), self.timeout_s) as connection:
                connection.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
                if struct.unpack("<i", _receive(connection, 4)) != (RPC_TRACKER_MAGIC,):
                    raise ValueError("it is something else")
                yield connection
        except (ConnectionRefusedError, socket.gaierror) as problem:
            raise BoardLost(
                f"{self} cannot be reached ({problem.strerror}); if there is only one board, leave the tracker out and "
                "give --connect rpc://HOST:PORT, else start it with: python -m tvm.exec.rpc_tracker "
                f"--host {self.host} --port {self.port}"
            ) from problem
        except TimeoutError as problem:
            raise BoardLost(f"{self} did not answer for {self.timeout_s:.0f} s; see whether it still runs") from problem
        except (OSError, ValueError, LookupError, TypeError) as problem:
            raise BoardLost(f"{self} gave an answer that is no tracker's ({problem}); check its port") from problem


def _call(connection: socket.socket, request: list[Any]) -> Any:
    text = json.dumps(request).encode()
    connection.sendall(struct.pack("<i", len(text)) + text)
    (length,) = struct.unpack("<i", _receive(connection, 4))
    if not 0 < length <= LONGEST_ANSWER:
        raise ValueError(f"of {length} bytes")
    answer = json.loads(_receive(connection, length))
    if answer[0] != TrackerCode.SUCCESS:
        raise ValueError(f"code {answer[0]}")
    return answer


def _receive(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        if not (chunk := connection.recv(count - len(content))):
            raise ValueError("cut short")
        content += chunk
    return content
