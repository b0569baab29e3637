"""An endpoint that Prometheus reads: http://HOST:PORT/metrics."""

from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from ps.errors import ConfigError
from ps.metrics import Meter, Metric


class Endpoint(Meter):
    """Listens from its making on; the end of `with` closes it. Thread-safe."""

    def __init__(self, host: str, port: int) -> None:
        self._registry = CollectorRegistry()
        self._families: dict[str, Counter | Gauge] = {}
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise ConfigError(f"no metrics on {host}:{port}: {error.strerror or error}; choose another metrics.port or metrics.host") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def tell(self, metric: Metric, value: float, *labels: str) -> None:
        family = self._families.get(metric.name)
        if family is None:
            make = Counter if metric.kind == "counter" else Gauge
            family = self._families[metric.name] = make(metric.name, metric.help, metric.labels, registry=self._registry)
        series = family.labels(*labels) if labels else family
        if isinstance(series, Gauge):
            series.set(value)
        elif value > 0:
            series.inc(value)
