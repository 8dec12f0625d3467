"""An emulated link: a relay that delays every byte by a fixed time each way, and can limit the rate.

`python -m benchmarks.relay LISTEN_PORT ADDR PORT --delay-ms 5 --mbit 100` forwards loopback's LISTEN_PORT.
"""

import argparse
import contextlib
import queue
import socket
import threading
import time

BLOCK_BYTES = 1 << 16
Packet = tuple[float, bytes]  # when it is due, and what


class Relay:
    """Forwards every connection to `port` of loopback to `target`. Use it as a context."""

    def __init__(self, port: int, target: tuple[str, int], delay_s: float, bytes_per_s: float | None = None) -> None:
        """`port` 0 takes any; `bytes_per_s` None is as fast as loopback."""
        self._target, self._delay_s, self._bytes_per_s = target, delay_s, bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", port))
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._start(self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *exc: object) -> None:
        """Close all connections and end all threads."""
        self._closing = True
        for sock in list(self._sockets):
            _shut(sock)
        for thread in list(self._threads):
            thread.join()
        for sock in self._sockets:
            sock.close()

    def _start(self, loop: object, *arguments: object) -> None:
        thread = threading.Thread(target=loop, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection(self._target)
            except OSError:
                _shut(near)
                continue
            self._sockets.append(far)
            for source, sink in ((near, far), (far, near)):
                for sock in (source, sink):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                packets: queue.SimpleQueue[Packet] = queue.SimpleQueue()
                self._start(self._read, source, packets)
                self._start(self._write, sink, packets)

    def _read(self, source: socket.socket, packets: "queue.SimpleQueue[Packet]") -> None:
        """Stamp what comes with the time at which it is due; nothing stands for the end."""
        free_s = 0.0  # when the last byte has left a line of the limited rate
        data = b"-"
        while data:
            try:
                data = source.recv(BLOCK_BYTES)
            except OSError:
                data = b""
            free_s = max(free_s, time.monotonic()) + (len(data) / self._bytes_per_s if self._bytes_per_s else 0.0)
            packets.put((free_s + self._delay_s, data))

    def _write(self, sink: socket.socket, packets: "queue.SimpleQueue[Packet]") -> None:
        while True:
            due_s, data = packets.get()
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                if data:
                    sink.sendall(data)
                    continue
            except OSError:
                pass
            _shut(sink)
            return


def _shut(sock: socket.socket) -> None:
    """End both directions, which wakes whoever waits on it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("listen_port", type=int)
    parser.add_argument("addr")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way, both ways")
    parser.add_argument("--mbit", type=float, help="megabits per second each way")
    options = parser.parse_args()
    bytes_per_s = options.mbit * 1e6 / 8 if options.mbit else None
    with Relay(options.listen_port, (options.addr, options.port), options.delay_ms / 1e3, bytes_per_s):
        threading.Event().wait()


if __name__ == "__main__":
    main()
