"""What an update serves instead of the deployed policies.

Ray takes a replica out of service while it takes over another `user_config`, and the others have to carry its share. So an
update leaves the deployment alone: it is written into the key-value store of the Ray cluster, where replicas that start later
find it, and replicas that run are told to look there. It holds for the deployment that it was made for, and ends with it.
"""

from __future__ import annotations

import secrets

from pydantic import BaseModel, Field
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from serve.config import PolicySources

KEY, NAMESPACE = b"policies", b"edgeflock"


class Update(BaseModel):
    """What is in the store.

    Attributes:
        deployed: The policies that were deployed when it was written.
        served: All that are served since.
        id: Tells it from every other one; the same folder may hold another bundle by now.
    """

    deployed: PolicySources
    served: PolicySources
    id: str = Field(default_factory=lambda: secrets.token_hex(8))


def read() -> Update | None:
    """The update that is stored."""
    record = _internal_kv_get(KEY, namespace=NAMESPACE)
    return None if record is None else Update.model_validate_json(record)


def write(update: Update) -> None:
    """Stores an update in the place of any other."""
    _internal_kv_put(KEY, update.model_dump_json().encode(), overwrite=True, namespace=NAMESPACE)


def of(deployed: PolicySources) -> Update | None:
    """The update of what is deployed, if there is one."""
    update = read()
    return update if update is not None and update.deployed == deployed else None


def end_of_others(deployed: PolicySources) -> None:
    """Forgets an update of another deployment: it does not come back with that one."""
    update = read()
    if update is not None and update.deployed != deployed:
        _internal_kv_del(KEY, namespace=NAMESPACE)
