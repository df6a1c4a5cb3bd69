"""The upload of local data and models to where pods can read them."""

from __future__ import annotations

from pathlib import Path

from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import addresses, model_folder, pinning
from expunge_jobs.store import Store, sha256_of


def upload(store: Store, path: Path) -> str:
    """Copy a data file, or a model or adapter directory, below the store.

    Returns the address to give in place of the path. The address holds the digest; therefore the same bytes under the
    same name are copied once.

    Raises:
        BadTask: none of these, an incomplete directory, a directory with a link out of it, or a name that no address
            can hold.
    """
    if "?" in path.name:
        raise BadTask(f"{path}: the name has a '?', at which an address ends: give the file another name")
    if path.is_dir():
        try:
            model_folder.check_folder(path)
        except BadTask as error:
            raise BadTask(f"{path}: {error}") from None
        digest = model_folder.folder_digest(path).removeprefix("sha256:")
        place = f"{addresses.STORED}/{digest}/{path.resolve().name}"
        files = {f"{place}/{file.name}": _checked(file, path) for file in model_folder.model_files(path)}
    else:
        pinning.read(f"file://{path.absolute()}")
        place = f"{addresses.STORED}/{sha256_of(path)}/{path.name}"
        files = {place: path}
    there = store.present(files)
    for name, file in files.items():
        if name not in there:
            store.put_file(name, file)
    options = store.uri.removeprefix(store.name)
    return f"{store.name}/{place}{options}"


def _checked(file: Path, folder: Path) -> Path:
    """Return the file, unless it is a link out of its directory.

    A stranger's model may contain ``vocab.txt -> ~/.aws/credentials``. A snapshot of the hub's cache consists of links
    into ``blobs`` beside ``snapshots``. These files belong to the same model.
    """
    target, home = file.resolve(), folder.resolve()
    allowed = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(a) for a in allowed):
        raise BadTask(f"{file}: a link to {target}, out of its directory; copy the file there, if it is meant")
    return file
