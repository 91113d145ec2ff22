"""Registers a user, keeps some files, and looks at what became of them.

    python example.py <host:port of a gateway> <the cluster's ca.pem> <user name> < password
"""

import pathlib
import sys
import tempfile

from coffer_files import Client, Refused


def main(server: str, ca_file: str, name: str) -> None:
    password = sys.stdin.readline().rstrip("\n")
    with Client(server, ca_file) as client:
        recovery_code = client.register(name, password)
        print(f"registered; the recovery code has {len(recovery_code)} characters")

        home = f"/{name}"
        client.make_directory(f"{home}/notes")
        for text in ("first thoughts", "second thoughts"):
            written = client.put(f"{home}/notes/today.txt", text)
            print(f"version {written.version} has {written.length} bytes")
        print("now:", client.get(f"{home}/notes/today.txt").decode())
        print("versions:", [it.version for it in client.versions(f"{home}/notes/today.txt")])

        client.remove(f"{home}/notes", recursive=True)
        print("after removing:", [file.path for file in client.list(home)])
        client.restore(f"{home}/notes")
        restored = client.restore(f"{home}/notes/today.txt", version=1)
        print("restored as version", restored.version)
        print("now:", client.get(f"{home}/notes/today.txt").decode())

        with tempfile.TemporaryDirectory() as folder:
            local, back = pathlib.Path(folder, "local"), pathlib.Path(folder, "back")
            local.write_bytes(bytes(range(256)) * 20_000)
            client.put_file(str(local), f"{home}/large.bin")
            client.get_file(f"{home}/large.bin", str(back))
            same = local.read_bytes() == back.read_bytes()
            print(f"{local.stat().st_size} bytes there and back, the same: {same}")
        print("found:", [file.path for file in client.find(home, "*.txt")])

        try:
            client.get("/somebody-else/file")
        except Refused as refused:
            print("refused:", refused.reason)
        client.logout()
        try:
            client.login(name, "not the password")
        except Refused as refused:
            print("refused:", refused.reason)
        client.login(name, password)
        print("again:", sorted(file.path for file in client.list(home)))
        client.logout()


if __name__ == "__main__":
    main(*sys.argv[1:])
