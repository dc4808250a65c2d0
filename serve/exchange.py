"""What an update serves instead of the deployed policies.

Ray takes a replica out of service while it takes over another `user_config`, and the others have to carry its share. So an
update leaves the deployment alone: it is written into the key-value store of the Ray cluster, where replicas that start later
find it, and replicas that run are told to look there. It holds for the deployment that it was made for: who deploys other
policies is not overruled by an old update.
"""

from __future__ import annotations

from pydantic import BaseModel
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from serve.config import PolicySources

KEY, NAMESPACE = b"policies", b"edgeflock"


class Update(BaseModel):
    """What is in the store.

    Attributes:
        deployed: The policies that were deployed when it was written.
        served: All that are served since.
    """

    deployed: PolicySources
    served: PolicySources


def served(deployed: PolicySources) -> PolicySources:
    """What is to be served now, where `deployed` is what was deployed."""
    record = read()
    if record is None:
        return deployed
    update = Update.model_validate_json(record)
    return update.served if update.deployed == deployed else deployed


def write(deployed: PolicySources, served: PolicySources) -> None:
    """From now on `served` takes the place of `deployed`."""
    restore(Update(deployed=deployed, served=served).model_dump_json().encode())


def read() -> bytes | None:
    """The update as it is stored; None where there is none."""
    return _internal_kv_get(KEY, namespace=NAMESPACE)


def restore(record: bytes | None) -> None:
    """Stores what `read` gave."""
    if record is None:
        _internal_kv_del(KEY, namespace=NAMESPACE)
    else:
        _internal_kv_put(KEY, record, overwrite=True, namespace=NAMESPACE)
