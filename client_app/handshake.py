"""What a node says of itself in the handshake; what is wrong with it is told by its name."""

import logging

from client_app import model, texts
from client_app.approval import check_approval
from client_app.model import lacks_model
from client_app.node import (
    Identity,
    NodeContext,
    agreed,
    free_bytes,
    megaflops,
    memory_bytes,
    use_threads,
)
from client_app.scratch import Scratch
from fedprune.config import RunConfig
from fedprune.data.samples import Sample
from fedprune.errors import FedpruneError
from fedprune.models.device import pick_device
from fedprune.models.fingerprint import Fingerprint
from fedprune.records import NodeReport
from fedprune.results.environment import source_digest, versions

_log = logging.getLogger("flwr")


def report(config: RunConfig, node: NodeContext, digest: str) -> NodeReport:
    """Say what this node has; a problem is part of the report, so that it is told by name.

    `digest`: the hash of the manifest of the server's model; "" where the server sends none.
    """
    hashes, problem, lacking = Fingerprint("", "", ""), "", False
    found: list[Sample] = []
    device, signer, settings = "", "", node.settings
    Scratch(node.scratch).sweep()
    for warning in settings.warnings:
        _log.warning("%s", warning)
    try:
        wanted, config = config, agreed(settings, config)
        check_approval(wanted, settings)
        key = Identity.of(settings).key
        signer = "" if key is None else key.public.text
        use_threads(settings.threads)
        device = str(pick_device(config.pruner.device))
        texts.own_documents(config, node)  # before a model comes that may take hours
        lacking = lacks_model(config.model, node, digest)
        if not lacking:
            hashes = model.model_fingerprint(config, node)
            found = texts.samples(config, node)
    except FedpruneError as error:
        problem = error.outside
        _log.info("this node cannot take part: %s", error)
    return NodeReport(
        partition_id=settings.partition_id,
        num_partitions=settings.num_partitions,
        site=settings.site,
        config_hash=hashes.config,
        weights_hash=hashes.weights,
        code_hash=source_digest(),
        samples=len(found),
        tokens=len(found) * config.pruner.seq_len,
        device=device,
        memory_bytes=memory_bytes(device),
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
        problem=problem,
        sample_ids="" if config.data.source == "node" else ",".join(s.id for s in found),
        free_bytes=free_bytes(device),
        megaflops=megaflops(device) if config.strategy.layer_resources == "measured" else 0,
        layer_permille=settings.layer_permille,
        lacks_model=lacking,
        warnings=" ".join(settings.warnings),
        signer=signer,
    )
