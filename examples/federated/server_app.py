"""The server's side for Flower: federated averaging that says what each client sent."""

from __future__ import annotations

from collections.abc import Iterable

from client import numbers_of, start
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from vitune.counts import count_parameters

app = ServerApp()


class TellingFedAvg(FedAvg):
    """FedAvg that prints, per round, the bytes that came from each client and the accuracy."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        came = list(replies)
        for reply in came:
            if reply.has_error():
                print(f"round {server_round}: a client failed: {reply.error.reason}")
                continue
            num_bytes = reply.content["arrays"].count_bytes()
            print(f"round {server_round}: a client sent {num_bytes:,} bytes")
        return super().aggregate_train(server_round, came)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        mean = super().aggregate_evaluate(server_round, replies)
        if mean is not None:
            print(f"round {server_round}: accuracy {mean['accuracy']:.1%} on held-out images")
        return mean


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for the configured rounds."""
    run = context.run_config
    model, _ = start(str(run["method"]), int(run["num-classes"]))
    num_clients = int(run["num-clients"])
    strategy = TellingFedAvg(
        min_train_nodes=num_clients,
        min_evaluate_nodes=num_clients,
        min_available_nodes=num_clients,
    )
    print(f"the whole network is {4 * count_parameters(model).total:,} bytes")
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(numbers_of(model)),
        num_rounds=int(run["num-server-rounds"]),
    )
