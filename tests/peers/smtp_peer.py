"""An SMTP server by aiosmtpd, which prints each mail as Python's own parser reads it: one JSON object a line.

Usage: smtp_peer.py PORT [--user NAME --password WORD] [--certificate PEM --key PEM [--wrapped]] [--hold PIPE] [--refuse CODE]
With a certificate it wants STARTTLS, or TLS from the start when it is wrapped; with a user it wants AUTH first.
Each mail is held, before it is taken, until somebody writes to the named pipe.
"""
import argparse, asyncio, email, email.policy, json, ssl
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
for name in ("user", "password", "certificate", "key"):
    parser.add_argument(f"--{name}")
parser.add_argument("--wrapped", action="store_true")
parser.add_argument("--hold")
parser.add_argument("--refuse", type=int)
options = parser.parse_args()


def say(**fields):
    print(json.dumps(fields), flush=True)


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if options.refuse:
            return f"{options.refuse} no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        say(message="receiving")
        if options.hold:
            await asyncio.get_running_loop().run_in_executor(None, lambda: open(options.hold).read())
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        say(message="mail", sender=envelope.mail_from, to=envelope.rcpt_tos, headers=dict(parsed.items()),
            defects=[str(defect) for defect in parsed.defects], body=parsed.get_content(),
            longest_line=max(map(len, envelope.content.split(b"\r\n"))), tls=options.wrapped or session.ssl is not None)
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    right = data.login == options.user.encode() and data.password == options.password.encode()
    say(message="login", user=data.login.decode(), right=right)
    return AuthResult(success=right)


more = {}
if options.user:
    more |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": bool(options.certificate) and not options.wrapped}
if options.certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    more |= {"ssl_context": context} if options.wrapped else {"tls_context": context, "require_starttls": True}
controller = Controller(Handler(), hostname="127.0.0.1", port=options.port, **more)
controller.start()
say(message="serving", listen=f"127.0.0.1:{options.port}")
asyncio.new_event_loop().run_forever()
