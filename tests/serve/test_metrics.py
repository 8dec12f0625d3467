"""What a server counts."""

from mdi.serve.errors import ApiError
from mdi.serve.schemas import Sampling
from mdi.serve.service import Ask, Service

from .conftest import MAX_QUEUE, N_SLOTS, Engine


def value(service: Service, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)


def ask() -> Ask:
    return Ask([[5, 6, 7]], Sampling())


def test_tokens_and_ends_are_counted(service: Service, engine: Engine) -> None:
    first, second = service.begin(ask()), service.begin(ask())
    for sample, n_cached in zip(engine.samples, (2, 0), strict=True):
        sample.n_cached = n_cached
        engine.say(sample, 1)
    engine.say(engine.samples[0], 1, 2)
    engine.end(engine.samples[0], "stop", 3)
    second.close()
    first.close()
    assert value(service, "mdi_prompt_tokens_total") == 6
    assert value(service, "mdi_cached_tokens_total") == 2
    assert value(service, "mdi_generated_tokens_total") == 5
    assert value(service, "mdi_samples_total", outcome="finished") == 1
    assert value(service, "mdi_samples_total", outcome="cancelled") == 1
    assert value(service, "mdi_time_to_first_token_seconds_count") == 2
    assert value(service, "mdi_time_between_tokens_seconds_count") == 2


def test_the_queue_is_told(service: Service, engine: Engine) -> None:
    for _ in range(N_SLOTS + MAX_QUEUE):
        service.begin(ask())
    assert value(service, "mdi_slots") == N_SLOTS
    assert value(service, "mdi_running_samples") == N_SLOTS
    assert value(service, "mdi_waiting_samples") == MAX_QUEUE
    assert value(service, "mdi_ring_ready") == 1


def test_a_text_for_prometheus(service: Service) -> None:
    service.metrics.refused(ApiError(429, "").status)
    lines = service.metrics.render().decode().splitlines()
    assert 'mdi_refused_requests_total{status="429"} 1.0' in lines
    assert any(line.startswith("# HELP mdi_slots ") for line in lines)


def test_what_was_predicted_is_told_beside_what_came_of_it(service: Service) -> None:
    assert value(service, "mdi_predicted_tokens_per_second") == 48
    assert value(service, "mdi_reached_tokens_per_second") == 40
    assert value(service, "mdi_node_slowness", node="starter") == 1.304
    assert value(service, "mdi_node_slowness", node="secondary 0") is None
