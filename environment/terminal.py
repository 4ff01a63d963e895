"""Usage, inside the container: TOKEN=... python environment/terminal.py COMMAND SECONDS

Types a command into a terminal of the running JupyterLab, as a person would, and prints what the terminal shows. Exits with the
command's status, or 124 when it has not ended in time.
"""

import http.client
import json
import os
import re
import sys
import time

import websocket

END = re.compile(r"^status=(\d+)\s", re.MULTILINE)  # not the echo of what was typed, which goes on with $?


def main(command: str, seconds: float) -> int:
    """The status of ``command``, typed and shown."""
    port, token = int(os.environ["JUPYTER_PORT"]), os.environ["TOKEN"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/api/terminals", headers={"Authorization": f"token {token}"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"JupyterLab opens no terminal with this token: {answer.status} {answer.reason}")
    name = json.load(answer)["name"]
    terminal = websocket.create_connection(f"ws://127.0.0.1:{port}/terminals/websocket/{name}?token={token}", timeout=10)
    terminal.send(json.dumps(["stdin", f"{command}; echo status=$?\r"]))
    shown, deadline = "", time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            kind, *content = json.loads(terminal.recv())
        except websocket.WebSocketTimeoutException:
            continue
        if kind == "stdout":
            shown += content[0]
        if ended := END.search(shown):
            print(shown)
            return int(ended[1])
    print(shown)
    return 124


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
