"""Stand-ins for the server and worker processes; the settings say what to do."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def serve(settings_json: str) -> int:
    """Notes its pid, prints, then ends as told: "end" in the settings is return, raise, exit or sleep."""
    settings = json.loads(settings_json)
    sys.stdout.write("first words\n\nlast words\n")
    sys.stderr.write("on stderr\n")
    if settings.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if settings.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(settings["child"]).write_text(str(child.pid))
    note = {"pid": os.getpid(), "argv": sys.argv, "token_in_environ": settings.get("token", "?") in str(os.environ), "host": settings.get("host")}
    if settings.get("say_to"):
        sys.stdout.flush()
        with socket.create_connection(("127.0.0.1", settings["say_to"]), timeout=30) as connection:
            connection.sendall(json.dumps(note).encode())
    match settings["end"]:
        case "sleep":
            time.sleep(600)
        case "raise":
            raise ValueError("no such thing")
        case "exit":
            sys.exit(settings["code"])
        case _:
            return int(settings.get("code", 0))
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.stdin.read()))
