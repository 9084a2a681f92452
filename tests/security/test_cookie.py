"""The cookie (RFC 6265bis, OWASP ASVS 7)."""

from __future__ import annotations

import base64
import hashlib
import secrets
import tracemalloc

import pytest
from itsdangerous import Signer
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Router
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.helpers.world import APP, SECRET_KEY, World

from .visits import NAME, cookies_of, is_logged_in, session_of, started, stored, visit

pytestmark = pytest.mark.anyio

NEWER = "new-" + "Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0Fe"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


async def test_a_cookie_with_any_character_changed_is_nobody(world: World) -> None:
    """22: every one of them, and the last by every other one."""
    cookie = session_of(await world.login())
    assert (await visit(world, f"{NAME}={cookie}".encode()))[0] == 200
    forged = [
        cookie[:n] + ALPHABET[ALPHABET.find(cookie[n]) ^ 1] + cookie[n + 1 :]
        for n in range(len(cookie))
    ]
    forged += [cookie[:-1] + other for other in ALPHABET if other != cookie[-1]]
    forged += [cookie.swapcase(), cookie[::-1], cookie.replace(".", ".."), cookie.replace(".", "")]
    for value in forged:
        assert (await visit(world, f"{NAME}={value}".encode()))[0] == 302, value


async def test_a_cookie_cut_extended_or_signed_otherwise_is_nobody(world: World) -> None:
    """22: truncated, extended, other key, other salt, other digest, no signature."""
    browser = await world.login()
    cookie = session_of(browser)
    payload = cookie.partition(".")[0]
    pending = world.browser()
    await started(pending)
    [login] = [c.value for c in pending.cookies.jar if "_login_" in c.name]
    salt = "cm_auth_middleware.session"

    def signed(key: str, salt: str, **options) -> str:
        return Signer([key], salt=salt, key_derivation="hmac", **options).sign(payload).decode()

    assert signed(SECRET_KEY, salt, digest_method=hashlib.sha256) == cookie  # the control
    for value in (
        cookie[:-1], cookie[1:], cookie + "A", cookie + "=", "A" + cookie, payload, payload + ".",
        "." + cookie.partition(".")[2], "", ".", login,
        signed(NEWER, salt, digest_method=hashlib.sha256),
        signed(SECRET_KEY, "cm_auth_middleware.login", digest_method=hashlib.sha256),
        signed(SECRET_KEY, "itsdangerous.Signer", digest_method=hashlib.sha256),
        signed(SECRET_KEY, salt, digest_method=hashlib.sha1),
    ):  # fmt: skip
        assert (await visit(world, f"{NAME}={value}".encode()))[0] == 302, value


async def test_a_session_cookie_is_no_login_cookie(world: World) -> None:
    """22: the reverse: it matches no state."""
    browser = await world.login()
    cookie = session_of(browser)
    other = world.browser()
    start = await started(other)
    [login] = [c.name for c in other.cookies.jar if "_login_" in c.name]
    thief = world.browser(Cookie=f"{login}={cookie}")
    calls = len(world.sim.requests)
    assert (await thief.get(other.callback_url(start.headers["location"]))).status_code == 400
    assert len(world.sim.requests) == calls


async def test_a_bad_signature_and_an_unknown_session_look_the_same(world: World) -> None:
    """22: same status, same headers, same body: nothing says which of the two it was."""
    browser = await world.login()
    cookie = session_of(browser)
    await browser.post("/auth/logout")  # from now on, well signed and unknown
    forged = "B" + cookie[1:] if cookie[0] == "A" else "A" + cookie[1:]
    seen = []
    for value in (cookie, forged):
        program = world.browser(Accept="*/*", Cookie=f"{NAME}={value}")
        for path in ("/", "/auth/session", "/auth/callback?code=x&state=y"):
            answer = await program.get(path)
            seen.append((answer.status_code, sorted(answer.headers.raw), answer.content))
    assert seen[:3] == seen[3:]


JUNK = [
    b"cm_auth=", b"cm_auth", b"=", b";", b"; ; ;", b"cm_auth=junk", b'cm_auth="', b'cm_auth="junk"',
    b"cm_auth=a b", b"cm_auth=" + b"a" * 8_192, b"cm_auth=" + b"." * 8_192, b"cm_auth=\x00",
    b"cm_auth=\xe9\xff", b"\xff=\xff", b"cm_auth=\xc3\xa9", b"cm_auth==", b"cm_auth=;cm_auth=",
    b"cm_auth[]=x", b"$Version=1; cm_auth=x; $Path=/", b"cm_auth=" + b"A" * 86 + b"." + b"A" * 43,
    b"cm_auth=" + b"=" * 130, b"cm_auth=%00", b"cm_auth=\\073", b"cm_auth=1,cm_auth=2",
    b"; ".join(b"cm_auth=%d" % n for n in range(150)), b"; ".join(b"c%d=x" % n for n in range(190)),
    b"cm_auth_in=\xb2", b"cm_auth_in=" + b"9" * 5_000, b"cm_auth_in=-1", b"cm_auth_login_=x",
    b"; ".join(b"cm_auth_login_%d=x" % n for n in range(100)), b"\r\n", b"\x7f" * 100,
    "cm_auth=\u0661\u0662".encode(), b"__Host-cm_auth=x", b"cm_auth =x", b" cm_auth=x",
    b"; ".join(b"cm_auth=" + b"A" * 86 + b"." + b"%043d" % n for n in range(100)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("blank", [b"\xa0", b"\x85", b"\x1c", b"\x0b", b"\x0c", b"\xc2\xa0"])
async def test_a_name_that_looks_like_ours_to_python_is_another(world: World, blank: bytes) -> None:
    """23: a neighbour may set it, for to the browser it does not begin with __Host-."""
    ours = f"{NAME}={session_of(await world.login())}".encode()
    victim = f"{NAME}={session_of(await world.login(email='bob@example.com'))}".encode()
    for name in (blank + ours, ours.replace(b"=", blank + b"=", 1)):
        assert (await visit(world, name))[0] == 302
        assert (await visit(world, b"theme=dark; " + name))[0] == 302
        status, _, body = await visit(world, name + b"; " + victim)
        assert (status, body.rpartition(b" ")[2]) == (200, b"bob@example.com")
    attacker = world.browser()
    url = attacker.callback_url((await started(attacker)).headers["location"])
    [login] = [f"{c.name}={c.value}".encode() for c in attacker.cookies.jar]
    callback = url.removeprefix(APP)
    assert (await visit(world, blank + login, callback))[0] == 400
    assert (await visit(world, login, callback))[0] == 302


@pytest.mark.slow
@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
async def test_junk_among_the_cookies_decides_nothing(world: World, junk: bytes) -> None:
    """23: alone it is nobody; before and after a valid cookie, that one counts."""
    valid = f"{NAME}={session_of(await world.login())}".encode()
    assert (await visit(world, junk))[0] in (302, 400)
    for cookies in (junk + b"; " + valid, valid + b"; " + junk):
        status, _, body = await visit(world, cookies)
        assert status == 200
        assert body.endswith(b"anna@example.com")
    for path in ("/auth/session", "/auth/login", "/auth/callback", "/auth/logout"):
        assert (await visit(world, junk, path))[0] in (200, 302, 400)


async def test_five_hundred_cookies_are_bounded_work(world: World) -> None:
    """23: what is looked at does not grow with what is sent."""
    valid = f"{NAME}={session_of(await world.login())}".encode()
    many = b"; ".join(b"cm_auth=" + b"A" * 86 + b"." + b"%043d" % n for n in range(500))
    tracemalloc.start()
    try:
        assert (await visit(world, many))[0] == 302
        assert (await visit(world, valid + b"; " + many))[0] == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


async def test_a_quoted_cookie_counts(world: World) -> None:
    """23: some proxies and clients quote a value."""
    valid = session_of(await world.login())
    assert (await visit(world, f'{NAME}="{valid}"'.encode()))[0] == 200


async def test_on_https_the_name_is_one_that_no_neighbour_can_set(world: World) -> None:
    """23: __Host- on https, and a cookie under the plain name counts for nothing there."""
    site = APP.replace("http:", "https:")
    world.net.apps[site] = world.net.apps[APP]
    plain = session_of(await world.login())
    start = await world.browser().get(f"{site}/cameras")
    [pending] = start.cookies
    assert pending.startswith(f"__Host-{NAME}_login_")
    assert (await world.browser(Cookie=f"{NAME}={plain}").get(f"{site}/")).status_code == 302
    assert (await world.browser(Cookie=f"__Host-{NAME}={plain}").get(f"{site}/")).status_code == 200


@pytest.mark.parametrize("secure", [False, True])
async def test_the_attributes_of_every_cookie(world: World, secure: bool) -> None:
    """24: HttpOnly, SameSite=Lax, Path=/, Secure on https, no Domain, under 4 096 bytes."""
    site = APP.replace("http:", "https:") if secure else APP
    world.net.apps[site] = world.net.apps[APP]
    browser = world.browser()
    start = await browser.get(f"{site}/deep/{'x' * 3_000}")
    done = await browser.get(browser.callback_url(start.headers["location"]))
    out = await browser.post(f"{site}/auth/logout")
    lines = [line for r in (start, done, out) for line in r.headers.get_list("set-cookie")]
    assert len(lines) >= 6
    for line in lines:
        pair, *attributes = line.split("; ")
        assert pair.startswith("__Host-" if secure else NAME)
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)
        assert ("Secure" in attributes) is secure
        assert "domain" not in line.lower()
        assert len(line) < 4_096


async def test_secure_can_be_forced_behind_a_proxy(make_world) -> None:
    """24: and the name follows."""
    world = make_world(cookie_secure=True)
    start = await world.browser().get("/")
    line = start.headers["set-cookie"]
    assert line.startswith(f"__Host-{NAME}_login_")
    assert "; Secure" in line


async def test_the_cookie_says_nothing(world: World) -> None:
    """24: 64 random bytes and a signature: no token, user or time; two of one second differ."""
    one, two = session_of(await world.login()), session_of(await world.login())
    raws = [base64.urlsafe_b64decode(c.partition(".")[0] + "==") for c in (one, two)]
    assert [len(raw) for raw in raws] == [64, 64]
    assert sum(a == b for a, b in zip(*raws, strict=True)) < 10
    for token in (*world.sim._tokens.access, *world.sim._tokens.refresh):
        assert token not in one
    assert b"10003" not in raws[0]
    for key, value in stored(world).items():
        assert key not in one
        assert raws[0][32:] not in value


async def test_a_session_id_is_256_bits_from_secrets_and_stored_as_a_hash(
    world: World, monkeypatch
) -> None:
    """25: the store's key is a hash of it, so that what is in the store opens nothing."""
    drawn: list[bytes] = []
    real = secrets.token_bytes

    def token_bytes(count: int) -> bytes:
        drawn.append(real(count))
        return drawn[-1]

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    cookie = session_of(await world.login())
    raw = base64.urlsafe_b64decode(cookie.partition(".")[0] + "==")
    assert {raw[:32], raw[32:]} <= set(drawn)
    [key] = [key for key in stored(world) if not key.startswith(("gone.", "grant.", "listed."))]
    assert key == hashlib.sha256(raw[:32]).hexdigest()


async def test_a_rotated_key_keeps_sessions_and_a_removed_one_ends_them(
    make_world, world: World
) -> None:
    """26: signed with the old key → accepted, signed anew; the old key removed → nobody."""
    browser = await world.login()
    cookie = session_of(browser)
    store = world.engine.store
    both, only = (
        make_world(secret_key=keys, store=store) for keys in ([SECRET_KEY, NEWER], [NEWER])
    )
    assert not await is_logged_in(only, f"{NAME}={cookie}")
    both.clock.tick(1)
    answer = await both.browser(Cookie=f"{NAME}={cookie}").get("/")
    assert answer.status_code == 200
    anew = answer.cookies[NAME]
    assert anew != cookie
    assert answer.headers["cache-control"] == "no-store"
    assert await is_logged_in(only, f"{NAME}={anew}")
    assert not await is_logged_in(only, f"{NAME}={cookie}")


async def test_a_process_that_lacks_the_new_key_destroys_nothing(make_world, world: World) -> None:
    """26: while a new key is rolled out, a process without it meets records that it cannot open."""
    cookie = session_of(await world.login())
    store = world.engine.store
    ahead = make_world(secret_key=[SECRET_KEY, NEWER], store=store)
    ahead.clock.tick(1)
    anew = (await ahead.browser(Cookie=f"{NAME}={cookie}").get("/")).cookies[NAME]
    assert not await is_logged_in(world, f"{NAME}={cookie}")
    assert await is_logged_in(ahead, f"{NAME}={anew}")


async def test_a_session_cookie_is_never_set_on_an_answer_that_caches_may_keep(
    make_world, world: World
) -> None:
    """28, 26: signed anew on a page that the application calls public: not with that cookie."""
    cookie = session_of(await world.login())

    async def asgi(scope, receive, send) -> None:
        headers = {"Cache-Control": "public, max-age=600"}
        await PlainTextResponse("page", headers=headers)(scope, receive, send)

    def wsgi(environ, start_response):
        headers = [("Content-Type", "text/plain"), ("Cache-Control", "public, max-age=600")]
        start_response("200 OK", headers)
        return [b"page"]

    app = asgi if world.side == "asgi" else wsgi
    rotated = make_world(secret_key=[SECRET_KEY, NEWER], store=world.engine.store, app=app)
    answer = await rotated.browser(Cookie=f"{NAME}={cookie}").get("/")
    assert NAME in answer.cookies
    assert answer.headers.get_list("cache-control") == ["no-store"]
    plain = await rotated.browser(Cookie=f"{NAME}={answer.cookies[NAME]}").get("/")
    assert plain.headers.get_list("cache-control") == ["public, max-age=600"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["logout", "idle", "absolute", "purge", "revoked", "again"])
async def test_the_cookie_of_a_session_that_ended_is_nobody_for_ever(make_world, how: str) -> None:
    """27: after a logout, a timeout, a purge, the end at CameraManager, a newer login."""
    world = make_world(idle_timeout=3_600, absolute_timeout=3 * 3_600)
    browser = await world.login()
    cookie = f"{NAME}={session_of(browser)}"
    if how == "logout":
        await browser.post("/auth/logout")
    elif how in ("idle", "purge"):
        world.clock.tick(3_601)
        if how == "purge":
            await world.engine.store.purge()
    elif how == "absolute":
        for _ in range(7):
            world.clock.tick(1_800)
            await browser.get("/")
    elif how == "revoked":
        world.sim.revoke_user("anna@example.com")
        await browser.get("/cameras")
    else:
        start = await browser.get("/auth/login")
        await browser.finish(start.headers["location"])
    for _ in range(3):
        assert not await is_logged_in(world, cookie)
        await world.login()  # the same user, in the same process
        world.clock.tick(100_000)
        assert not await is_logged_in(world, cookie)


async def test_authenticated_answers_are_not_kept_by_caches(world: World) -> None:
    """28: no-store and Vary: Cookie on pages, on errors of the app, on ours, on exempt paths."""
    browser = await world.login()
    for path in ("/", "/cameras", "/nothing-here", "/auth/session", "/auth/logout"):
        answer = await browser.get(path)
        assert answer.headers["cache-control"] == "no-store", path
    for path in ("/", "/cameras", "/nothing-here", "/auth/session"):
        assert "cookie" in (await browser.get(path)).headers["vary"].lower()
    for answer in (
        await world.browser().get("/"),
        await world.browser(Accept="*/*").get("/"),
        await world.browser().get("/auth/callback?code=x&state=y"),
        await browser.post("/auth/logout"),
    ):
        assert answer.headers["cache-control"] == "no-store"


async def test_the_applications_own_cache_control_stays(make_world, side: str) -> None:
    """28: and its Vary is added to."""

    async def asgi(scope, receive, send) -> None:
        headers = {"Cache-Control": "private, max-age=5", "Vary": "Accept"}
        await PlainTextResponse("page", headers=headers)(scope, receive, send)

    def wsgi(environ, start_response):
        headers = [("Content-Type", "text/plain"), ("Cache-Control", "private, max-age=5")]
        start_response("200 OK", [*headers, ("Vary", "Accept")])
        return [b"page"]

    world = make_world(app=asgi if side == "asgi" else wsgi)
    answer = await (await world.login()).get("/")
    assert answer.headers["cache-control"] == "private, max-age=5"
    assert {v.strip() for v in answer.headers["vary"].split(",")} == {"Accept", "Cookie"}


async def test_two_apps_below_one_host_can_have_cookies_of_their_own(make_world) -> None:
    """24: Path stays "/" for __Host-; who mounts two of them names the cookies."""
    first, second = (make_world(cookie_name=name) for name in ("first", "second"))
    if first.side == "asgi":
        site = Router(routes=[Mount("/one", first.app), Mount("/two", second.app)])
        first.net.add(APP, site)
    else:
        apps = {"/one": first.app, "/two": second.app}
        first.net.add_wsgi(APP, DispatcherMiddleware(first.app, apps))
    browser = first.browser()
    start = await browser.get("/one/deep/1")
    await browser.get(browser.callback_url(start.headers["location"]))
    assert "first=" in cookies_of(browser)
    assert (await browser.get("/one/deep/1")).status_code == 200
    assert (await browser.get("/two/deep/1")).status_code == 302


SITE = "https://app.example"


@pytest.mark.parametrize("name", [None, "mine", "__Host-mine", "__host-mine"])
async def test_secure_follows_redirect_uri_whatever_scheme_the_proxy_tells(
    make_world, name: str | None
) -> None:
    """62: R10: every cookie of a login, of the session and of a logout is one for https alone."""
    world = make_world(redirect_uri=f"{SITE}/auth/callback", cookie_name=name)
    session = {None: "__Host-cm_auth", "mine": "__Host-mine", "__Host-mine": "__Host-mine"}.get(
        name, "__Host-__host-mine"
    )
    lines, jar = await life(world)
    assert {line.partition("=")[0].partition("_login_")[0] for line in lines} == {
        session, f"{session}_in",
    }  # fmt: skip
    for line in lines:
        assert {"Secure", "Path=/", "HttpOnly"} <= set(line.split("; "))
        assert "domain" not in line.lower()
    assert await is_logged_in(world, f"{session}={jar[session]}")
    for tossed in {"cm_auth", "mine", "__Secure-mine", f"x{session}", "__host-mine"} - {session}:
        assert not await is_logged_in(world, f"{tossed}={jar[session]}")


async def life(world: World) -> tuple[list[str], dict[str, str]]:
    """Log in and out over http as behind a proxy: every Set-Cookie line, and the login's cookies.

    The session is left alive by logging out without its cookie.
    """
    browser = world.browser()
    start = await started(browser)
    pending = start.headers["set-cookie"].partition(";")[0]
    callback = browser.callback_url(start.headers["location"]).replace(SITE, APP)
    done = await world.browser(Cookie=pending).get(callback)
    assert done.status_code == 302, done.text
    out = await world.browser().post("/auth/logout")
    lines = [line for r in (start, done, out) for line in r.headers.get_list("set-cookie")]
    kept = (line.partition(";")[0].partition("=") for line in done.headers.get_list("set-cookie"))
    return lines, {name: value for name, _, value in kept if value}


async def test_a_name_of_ones_own_is_prefixed_on_https_and_plain_on_http(make_world) -> None:
    """62: one application that is reached both ways has two names, and each counts there alone."""
    world = make_world(cookie_name="mine")
    site = APP.replace("http:", "https:")
    world.net.apps[site] = world.net.apps[APP]
    browser = await world.login()
    [value] = browser.named("mine")
    for origin, name, status in (
        (APP, "mine", 200),
        (APP, "__Host-mine", 302),
        (site, "mine", 302),
        (site, "__Host-mine", 200),
    ):
        for _ in range(2):  # the second time from what is remembered of the first
            visitor = world.browser(Cookie=f"{name}={value}")
            assert (await visitor.get(f"{origin}/")).status_code == status, (origin, name)
    [pending] = (await world.browser().get(f"{site}/")).headers.get_list("set-cookie")
    assert pending.startswith("__Host-mine_login_")
    assert "; Secure" in pending


async def test_a_name_that_says_secure_stays(make_world) -> None:
    """62: with the warning at start that a neighbour can set it."""
    with pytest.warns(UserWarning, match="a neighbouring host may set a cookie of this name"):
        world = make_world(redirect_uri=f"{SITE}/auth/callback", cookie_name="__Secure-mine")
    lines, jar = await life(world)
    assert "__Secure-mine" in jar
    assert all("; Secure" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "scheme", "secure"),
    [
        ({"cookie_secure": False, "redirect_uri": f"{SITE}/auth/callback"}, "http", False),
        ({"cookie_secure": False, "redirect_uri": f"{SITE}/auth/callback"}, "https", False),
        ({"cookie_secure": False}, "https", False),
        ({"cookie_secure": True, "redirect_uri": f"{APP}/auth/callback"}, "http", True),
        ({"cookie_secure": True}, "http", True),
        ({"redirect_uri": f"{APP}/auth/callback"}, "http", False),
        ({"redirect_uri": f"{APP}/auth/callback"}, "https", True),
        ({"redirect_uri": "HTTPS://app.example/auth/callback"}, "http", True),
        ({}, "http", False),
        ({}, "https", True),
    ],
)  # fmt: skip
async def test_what_decides_whether_cookies_are_for_https(
    make_world, options, scheme: str, secure: bool
) -> None:
    """62: cookie_secure, where it is given; else redirect_uri or the request, if one is https."""
    world = make_world(cookie_name="mine", **options)
    site = APP.replace("http", scheme)
    world.net.apps[site] = world.net.apps[APP]
    line = (await world.browser().get(f"{site}/cameras")).headers["set-cookie"]
    assert line.startswith("__Host-mine_login_" if secure else "mine_login_")
    assert ("; Secure" in line) is secure


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["navigation", "fetch"])
async def test_a_proxy_that_forgot_the_scheme_is_told_of_once(
    make_world, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """62: however many such requests somebody makes; and never where the schemes are one."""
    headers = {} if kind == "navigation" else {"Accept": "application/json"}
    site = APP.replace("http:", "https:")
    for redirect_uri, origin, expected in (
        (f"{SITE}/auth/callback", APP, ["request=http redirect_uri=https"]),
        (f"{APP}/auth/callback", site, ["request=https redirect_uri=http"]),
        (f"{SITE}/auth/callback", site, []),
        (f"{APP}/auth/callback", APP, []),
        (None, site, []),
        (None, APP, []),
    ):
        caplog.clear()
        world = make_world(redirect_uri=redirect_uri)
        world.net.apps[site] = world.net.apps[APP]
        for _ in range(20):
            await world.browser(**headers).get(f"{origin}/cameras")
        told = [r.getMessage() for r in caplog.records if r.msg and "scheme_mismatch" in r.message]
        assert len(told) == len(expected)
        for message, fields in zip(told, expected, strict=True):
            assert message.startswith(f"scheme_mismatch {fields}: ")
            # What to do for each: nothing of a proxy helps where redirect_uri itself is http.
            assert "if redirect_uri is https, let the server trust" in message
            assert "If it is http, write https there" in message


async def test_a_name_that_browsers_refuse_on_http_is_told_of_once(
    make_world, caplog: pytest.LogCaptureFixture
) -> None:
    """62: a __Host- cookie on a site that turns out to be http."""
    world = make_world(cookie_name="__Host-mine")
    for _ in range(3):
        await started(world.browser())
    [told] = [r for r in caplog.records if getattr(r, "event", "") == "cookie_prefix_on_http"]
    assert told.cookie_name == "__Host-mine"  # type: ignore[attr-defined]
