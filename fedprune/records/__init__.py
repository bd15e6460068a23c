"""Domain objects to and from Flower's records: the only package that knows Flower.

Names in records are kebab-case. Everything read here may come from a stranger: types and ranges
are checked, nothing is unpickled.
"""

from fedprune.flower.messages import message_bytes
from fedprune.records.attestation import (
    attest_request,
    attested_record,
    read_attest_request,
    read_attested,
)
from fedprune.records.fields import shown
from fedprune.records.models import (
    ModelSegment,
    held_record,
    manifest_record,
    read_held,
    read_model_segment,
    segment_record,
)
from fedprune.records.replies import (
    FINAL,
    FinalOrder,
    LocalResult,
    PruneReply,
    fetched_record,
    final_record,
    joined,
    local_record,
    own_text_record,
    prune_record,
    read_final,
    read_local,
    read_own_text,
    read_prune,
    read_segment,
    read_sizes,
    split_record,
)
from fedprune.records.reports import NodeReport, read_report, report_record
from fedprune.records.requests import (
    BUNDLE_FORMAT,
    Order,
    order_record,
    read_ahead,
    read_bundle,
    read_order,
    request,
    requested,
)
from fedprune.records.secure import (
    Keys,
    KeysOrder,
    keys_record,
    keys_request,
    parts_record,
    parts_request,
    read_keys,
    read_keys_request,
    read_parts,
)
