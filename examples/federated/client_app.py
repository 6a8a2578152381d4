"""The client's side for Flower. Each client trains on its own share of the images."""

from __future__ import annotations

from functools import cache

from client import Client, shares
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@cache  # Flower keeps a process for many messages; the images are loaded once
def _client(data: str, method: str, number: int, num_clients: int) -> Client:
    return Client(*shares(data, num_clients)[number], method=method)


def _here(context: Context) -> Client:
    """This client. In a federation of your own, read your own folder of images instead."""
    run, node = context.run_config, context.node_config
    return _client(
        str(run["data"]),
        str(run["method"]),
        int(node["partition-id"]),
        int(node["num-partitions"]),
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the server's numbers and send the new ones."""
    client, config = _here(context), message.content["config"]
    sent = client.fit(
        message.content["arrays"].to_torch_state_dict(),
        int(config["server-round"]),
        epochs=int(context.run_config["local-epochs"]),
        lr=float(context.run_config["lr"]),
    )
    weight = MetricRecord({"num-examples": len(client.labels)})
    content = RecordDict({"arrays": ArrayRecord(sent), "metrics": weight})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the averaged numbers on the client's held-out images."""
    client = _here(context)
    accuracy = client.accuracy(message.content["arrays"].to_torch_state_dict())
    told = MetricRecord({"num-examples": len(client.unseen_labels), "accuracy": accuracy})
    return Message(content=RecordDict({"metrics": told}), reply_to=message)
