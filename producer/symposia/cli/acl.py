"""``symposia acl``: least-privilege Redis users for a deployment."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from symposia_shared.access import ROLES, acl_line
from symposia_shared.errors import BadInput
from symposia_shared.settings import Settings


def acl(
    out: Annotated[Path, typer.Option("--out", "-o", help="The ACL file to write; it must not exist.")] = Path("users.acl"),
    prefix: Annotated[str, typer.Option(help="The deployment's key prefix (SYMPOSIA_PREFIX).")] = "symposia:",
    db: Annotated[int, typer.Option(min=0, max=15, help="The database number in the broker's URL.")] = 0,
) -> None:
    """Write an ACL file with the users producer, worker and monitor, and print their new passwords once."""
    Settings(prefix=prefix)  # refuses what is no prefix
    passwords = {role: secrets.token_hex(24) for role in ROLES}
    # the default user is off: who does not name a user gets in nowhere
    lines = ["user default off resetpass resetkeys resetchannels -@all", *(acl_line(role, prefix, passwords[role], db) for role in ROLES)]
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise BadInput(f"{out} is there already.", field="out", value=str(out), remedy="Name another file, or remove it first.") from None
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}.", field="out", value=str(out), remedy="Name a folder that is there.") from None
    print(f"{out} holds the rules and the passwords' digests. Load it with `aclfile {out.absolute()}` in the server's configuration.")
    print("The passwords are not stored anywhere:")
    for role in ROLES:
        print(f"  {role:<9} SYMPOSIA_BROKER_URL=redis://{role}:{passwords[role]}@HOST:6379/{db}")
