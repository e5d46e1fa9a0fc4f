"""Least-privilege Redis users for the three roles, as ACL rules (Redis 7 or Valkey).

Every rule is bounded to the deployment's prefix. The boundary is the key and the channel: a script (the ledger's) runs with its
caller's rights, so a producer that loads a script of its own can do with the prefix's keys what the commands below allow, and nothing
elsewhere. Only workers may answer, and only they and the monitor reach the remote control channels.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Role = Literal["producer", "worker", "monitor"]
ROLES: tuple[Role, ...] = ("producer", "worker", "monitor")

_CONNECT = "+ping +echo +select +hello +auth +quit +reset +client|setinfo +client|setname +client|id +info +time"
_SCRIPTS = "+evalsha +script|load +script|exists +multi +exec +discard +watch +unwatch"
_READ = "+@read -keys -scan -randomkey -dbsize"
_SUBSCRIBE = "+subscribe +unsubscribe +psubscribe +punsubscribe"
#: what kombu, the ledger's scripts and Celery's backend write with
_WRITE = ("+set +setex +incr +incrby +expire +pexpire +del +unlink +hset +hsetnx +hdel +hincrby +lpush +rpush +lpop +rpop +brpop +llen +lrem +ltrim "
          "+sadd +srem +zadd +zrem +zincrby +zremrangebyscore +zremrangebyrank +persist")

_BY_ROLE: dict[Role, str] = {
    # it hears answers and the ends of jobs, and tells Flower what it sent; no control command is its to give
    "producer": f"~{{p}}* {_SCRIPTS} {_WRITE} &{{p}}ended* &{{p}}said:* &{{p}}/{{db}}.celeryev/task.sent",
    "worker": f"~{{p}}* {_SCRIPTS} {_WRITE} &{{p}}* &{{p}}/{{db}}.celery.pidbox",
    # it reads, and writes to its own mailbox alone; workers allow-list what it may ask them (``symposia_worker.remote``)
    "monitor": (f"%R~{{p}}* ~{{p}}*reply.celery.pidbox* ~{{p}}celeryev.* ~{{p}}_kombu.binding* ~{{p}}unacked_mutex "
                f"&{{p}}/{{db}}.celeryev/* &{{p}}/{{db}}.celery.pidbox "
                f"{_SCRIPTS} +sadd +srem +brpop +del +llen +zadd +zrem +set +expire +pexpire"),
}


def rules(role: Role, prefix: str, db: int = 0) -> str:
    """The ACL rules of a role, without name and password. A pattern is subscribed to by its literal name, database number included."""
    return f"reset on resetchannels {_CONNECT} {_READ} {_SUBSCRIBE} +publish {_BY_ROLE[role].format(p=prefix, db=db)}"


def acl_line(role: Role, prefix: str, password: str, db: int = 0) -> str:
    """``user ROLE ...`` as it stands in an ACL file, with the password's sha256 in the place of the password."""
    return f"user {role} {rules(role, prefix, db)} #{hashlib.sha256(password.encode()).hexdigest()}"
