"""A client of Coffer's files API: plain files, for users in gateway custody.

The messages and the stub are generated from `proto/coffer/v1/files.proto` (`./generate`). This module adds
what each program needs besides: the connection, the token, and the reasons of refusals.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import grpc
from coffer.v1 import files_pb2 as pb
from coffer.v1.files_pb2_grpc import FilesServiceStub
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

__all__ = ["Client", "Refused", "pb"]

# Content of 4 MiB and what stands around it; gRPC's own limit is 4 MiB in all.
_MESSAGE_BYTES_MAX = 6 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
]
# Content of one message of a stream.
_PIECE_BYTES = 1 << 20


class Refused(Exception):
    """A call that was refused. `reason` is stable: programs follow it, and not the text."""

    def __init__(self, code: grpc.StatusCode, reason: str, text: str):
        super().__init__(f"{reason or code.name}: {text}")
        self.code, self.reason = code, reason


class Client:
    """A connection to a gateway, and the session of one user once it is logged in."""

    def __init__(self, server: str, ca_file: str, timeout_seconds: float = 60):
        authority = pathlib.Path(ca_file).read_bytes()
        credentials = grpc.ssl_channel_credentials(authority)
        self._channel = grpc.secure_channel(server, credentials, options=_OPTIONS)
        self._stub = FilesServiceStub(self._channel)
        self._timeout_seconds = timeout_seconds
        self._token = ""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def register(self, name: str, password: str, invite: str = "") -> str:
        """Makes a user in gateway custody, and logs in; gives the recovery code, to be kept on paper."""
        request = pb.RegisterRequest(name=name, password=password, invite=invite)
        made = self._call(self._stub.Register, request)
        self._token = made.session.token
        return made.recovery_code

    def login(self, name: str, password: str) -> None:
        """Begins a session of at most twelve hours."""
        answer = self._call(self._stub.Login, pb.LoginRequest(name=name, password=password))
        self._token = answer.session.token

    def logout(self) -> None:
        """Ends the session, on every gateway."""
        self._call(self._stub.Logout, pb.LogoutRequest())
        self._token = ""

    def put(self, path: str, content: bytes | str, **options: object) -> pb.Written:
        """Writes a whole file of at most 4 MiB. Options are the other fields of `PutRequest`."""
        field = "text" if isinstance(content, str) else "data"
        request = pb.PutRequest(path=path, **{field: content}, **options)
        return self._call(self._stub.Put, request).file

    def get(self, path: str, **options: object) -> bytes:
        """Reads a whole file of at most 4 MiB, or a part. Options are those of `GetRequest`."""
        return self._call(self._stub.Get, pb.GetRequest(path=path, **options)).data

    def put_file(self, local: str, path: str) -> pb.Written:
        """Writes a local file of any size."""

        def parts() -> Iterator[pb.PutStreamRequest]:
            yield pb.PutStreamRequest(start=pb.StartUploadRequest(path=path))
            with open(local, "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield pb.PutStreamRequest(data=piece)

        return self._call(self._stub.PutStream, parts()).file

    def get_file(self, path: str, local: str) -> None:
        """Reads a file of any size into a local one, which is there when it is whole."""
        unfinished = pathlib.Path(f"{local}.unfinished")
        try:
            with open(unfinished, "xb") as file:
                request = pb.GetStreamRequest(path=path)
                for part in self._stub.GetStream(request, metadata=self._metadata()):
                    file.write(part.data)
            unfinished.rename(local)
        except grpc.RpcError as error:
            unfinished.unlink()
            raise _refused(error) from None

    def list(self, path: str, deleted: bool = False) -> Iterator[pb.File]:
        """The names in a directory, page by page."""
        token = ""
        while True:
            request = pb.FilesServiceListRequest(path=path, deleted=deleted, page_token=token)
            page = self._call(self._stub.List, request)
            yield from page.files
            token = page.next_page_token
            if not token:
                return

    def versions(self, path: str) -> Iterator[pb.FileVersion]:
        """The versions of a file, newest first."""
        token = ""
        while True:
            request = pb.FilesServiceListVersionsRequest(path=path, page_token=token)
            page = self._call(self._stub.ListVersions, request)
            yield from page.versions
            token = page.next_page_token
            if not token:
                return

    def stat(self, path: str) -> pb.File:
        """What a path leads to."""
        return self._call(self._stub.Stat, pb.StatRequest(path=path)).file

    def make_directory(self, path: str, parents: bool = False) -> None:
        """Makes a directory."""
        self._call(self._stub.MakeDirectory, pb.MakeDirectoryRequest(path=path, parents=parents))

    def move(self, origin: str, to: str) -> None:
        """Gives a file or directory another path."""
        self._call(self._stub.Move, pb.MoveRequest(to=to, **{"from": origin}))

    def copy(self, origin: str, to: str, recursive: bool = False) -> None:
        """Copies a file, or a directory with everything in it."""
        self._call(self._stub.Copy, pb.CopyRequest(to=to, recursive=recursive, **{"from": origin}))

    def remove(self, path: str, recursive: bool = False) -> None:
        """Removes a file, or a directory with everything in it. It can be brought back."""
        self._call(self._stub.Remove, pb.RemoveRequest(path=path, recursive=recursive))

    def restore(self, path: str, version: int = 0) -> pb.File:
        """Brings back what was removed, or an older version of a file."""
        return self._call(self._stub.Restore, pb.RestoreRequest(path=path, version=version)).file

    def find(self, path: str, glob: str) -> list[pb.File]:
        """What has a name like a pattern, below a directory."""
        return list(self._call(self._stub.Find, pb.FindRequest(path=path, glob=glob)).files)

    def quota(self) -> pb.GetQuotaResponse:
        """How much room the user's files take, and may take."""
        return self._call(self._stub.GetQuota, pb.GetQuotaRequest())

    def _metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self._token}")] if self._token else []

    def _call(self, method, request):
        try:
            return method(request, timeout=self._timeout_seconds, metadata=self._metadata())
        except grpc.RpcError as error:
            raise _refused(error) from None


def _refused(error: grpc.RpcError) -> Refused:
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info = ErrorInfo()
        if detail.Unpack(info) and info.domain == "coffer":
            return Refused(error.code(), info.reason, error.details())
    return Refused(error.code(), "", error.details())
