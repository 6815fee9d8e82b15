"""Sign-ups and exports, with threads and Flask-Mail: ``flask --app before run``."""

from __future__ import annotations

from threading import Thread

from flask import Flask, abort, request
from flask_mail import Mail, Message

mail = Mail()
exports: dict[int, dict[str, object]] = {}  # of this process, until it ends


def send_in_thread(app: Flask, message: Message) -> None:
    with app.app_context():
        mail.send(message)  # where this raises, the mail is gone


def export(app: Flask, number: int, rows: int) -> None:
    with app.app_context():
        lines = []
        for row in range(rows):
            lines.append(f"{row},{row * row}")
            exports[number]["progress"] = f"{row + 1} of {rows}"
        exports[number]["result"] = "\n".join(lines)


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(MAIL_DEFAULT_SENDER="shop@example.org")
    app.config.update(config)
    mail.init_app(app)

    @app.post("/signup")
    def signup():
        message = Message("Welcome", recipients=[request.form["email"]], body="Thank you for signing up.")
        Thread(target=send_in_thread, args=(app, message)).start()
        return "", 204

    @app.post("/exports")
    def start():
        number = len(exports) + 1
        exports[number] = {"progress": None, "result": None}
        Thread(target=export, args=(app, number, request.form.get("rows", 3, type=int)), daemon=True).start()
        return {"export": number}, 202

    @app.get("/exports/<int:number>")
    def show(number: int):
        if number not in exports:
            abort(404)
        return exports[number]

    return app
