"""The inspector in a real Chromium: what the person who pastes the URL sees, hears and presses."""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "operations"))
from processes import end, wait_for

TOKEN = "the token of the browser tests"
SECRET = "the secret of the browser tests"
MESSAGE = "wamid.HBgNNTU4Mjk5OTk5MDAwMBUCABEYEjNB"
PHONE = "5582999990000"
# A name that no browser takes for this machine, so that the page is no secure context.
ELSEWHERE = "edge.test"
PATIENCE = 15_000  # ms


def status(name="delivered", message=MESSAGE):
    update = {"id": message, "status": name, "timestamp": str(int(time.time())), "recipient_id": PHONE}
    return json.dumps({"statuses": [update]})


def post(url, headers, body):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.request("POST", parts.path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


class Dev:
    """`weni-edge dev`: an edge with a Kafka inside, open on loopback."""

    def __init__(self, binary, *arguments):
        command = [binary, "dev", "--output", "json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        try:
            ready = json.loads(self.process.stdout.readline())
            self.inspector, self.hooks, self.kafka = ready["inspector"], ready["hooks"], ready["kafka"]
            ((self.header, self.secret),) = ready["headers"].items()
        except BaseException:
            self.end()
            raise

    def call(self, headers=None, path=None):
        url = self.hooks if path is None else self.hooks.replace(urlsplit(self.hooks).path, path)
        return post(url, {self.header: self.secret} if headers is None else headers, status())

    def end(self):
        end(self.process, signal.SIGINT)


class Serve:
    """`weni-edge serve` with a login, on ports that stay the same over a restart."""

    def __init__(self, binary, work, kafka):
        self.binary, self.work, self.process = binary, Path(work), None
        self.public, self.admin = "127.0.0.1:0", "127.0.0.1:0"
        (self.work / "token").write_text(TOKEN)
        self.kafka = kafka
        self.start()

    def start(self):
        config = self.work / "weni-edge.toml"
        config.write_text(f"""
[http]
listen = "{self.public}"
drain = "0s"
public_url = "https://webhooks.example.com"
[admin]
listen = "{self.admin}"
token_file = "{self.work / "token"}"
[sources.loja]
header = "X-Token"
secrets = ["{SECRET}"]
[journal]
directory = "{self.work / "journal"}"
min_free_bytes = 0
allow_volatile = true
[kafka]
bootstrap_servers = "{self.kafka}"
""")
        command = [self.binary, "serve", "--config", config]
        log = self.work / "edge.log"
        with log.open("w") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL)
        try:
            line = wait_for("the edge listens", lambda: self.listening(log), 60)
        except BaseException:
            self.end()
            raise
        self.public, self.admin = line["public"], line["admin"]

    def listening(self, log):
        """The line of the log that says where it listens, once it is there."""
        assert self.process.poll() is None, f"the edge has ended: {log.read_text()}"
        lines = [line for line in log.read_text().splitlines(keepends=True) if '"listening"' in line]
        return json.loads(lines[0]) if lines and lines[0].endswith("\n") else None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        end(self.process, signal.SIGINT)


class Tests:
    def __init__(self, browser, dev, serve, axe):
        self.browser, self.dev, self.serve, self.axe = browser, dev, serve, axe
        self.elsewhere = f"http://{ELSEWHERE}:{serve.admin.rsplit(':', 1)[1]}/inspector"

    def page(self, url=None, **options):
        """A page of its own browser. It must ask for nothing elsewhere and complain of nothing."""
        context = self.browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(url or self.dev.inspector)
        return page

    def close(self, page, allowed=()):
        complaints = [one for one in page.complaints if not any(re.search(ok, one) for ok in allowed)]
        assert not complaints, complaints
        origin = urlsplit(page.url).netloc
        assert {urlsplit(url).netloc for url in page.requests} == {origin}, page.requests
        told = " ".join(page.requests)
        assert not any(word in told for word in (self.dev.secret, SECRET, TOKEN, PHONE, "wamid")), told
        page.context.close()

    def log_in(self, page):
        page.get_by_label("Token de administração").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="loja")).to_be_visible()

    def violations(self, page):
        """What axe-core finds, by rule and place."""
        page.evaluate(self.axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [(one["id"], node["target"], node["failureSummary"]) for one in found for node in one["nodes"]]

    # --- the tests, in this order -----------------------------------------------------------------

    def test_an_empty_page_says_what_to_paste_and_what_goes_wrong_in_silence(self):
        page = self.page()
        expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
        expect(page.get_by_text("Nada chegou da Weni ainda.")).to_be_visible()
        for label in ("Método", "URL do webhook", "Cabeçalhos: Chave", "Cabeçalhos: Valor"):
            expect(page.locator("dt", has_text=label)).to_be_visible()
        expect(page.locator(".checklist")).to_have_attribute("open", "")
        expect(page.locator(".checklist li")).to_have_count(7)
        for language in ("Português", "English"):
            page.get_by_role("button", name=language).click()
            assert not (found := self.violations(page)), found
        self.close(page)

    def test_the_first_call_appears_within_a_second_and_then_it_is_in_kafka(self):
        page = self.page()
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        assert self.dev.call() == 200
        expect(page.locator(".call .what")).to_have_text("status delivered", timeout=1000)
        expect(page.locator(".call .kafka")).to_contain_text("no Kafka em até ")
        expect(page.get_by_text("Última chamada da Weni:")).to_be_visible()
        expect(page.locator(".call .ids")).to_contain_text("ce_id ")
        shown = page.locator("body").inner_text()
        assert PHONE not in shown and "wamid." not in shown, shown
        page.get_by_role("button", name="Detalhes").click()
        expect(page.locator(".call pre")).to_contain_text(MESSAGE)
        expect(page.locator(".call pre")).to_contain_text(f'"recipient_id": "{PHONE}"')
        self.close(page)

    def test_refused_calls_are_explained_in_both_languages(self):
        page = self.page()
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        assert self.dev.call(headers={self.dev.header: "x" * 36}) == 401
        wrong = page.locator(".call.refused .why").first
        expect(wrong).to_contain_text("X-Token veio com 36 caracteres; o segredo tem 32.", timeout=1000)
        assert self.dev.call(headers={"Authorization": "Bearer 1"}) == 401
        expect(wrong).to_contain_text("Falta o header X-Token. A chamada trouxe authorization.")
        assert self.dev.call(headers={self.dev.header: f'"{self.dev.secret}"'}) == 401
        expect(wrong).to_contain_text("O segredo certo está lá, entre aspas")
        assert self.dev.call(path="/hooks/demmo") == 404
        expect(page.get_by_text("Você quis dizer /hooks/demo?")).to_be_visible()
        page.get_by_role("button", name="English").click()
        expect(page.get_by_text("X-Token came with 36 characters; the secret has 32.")).to_be_visible()
        expect(page.get_by_text("Did you mean /hooks/demo?")).to_be_visible()
        page.reload()
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.get_by_text("Did you mean /hooks/demo?")).to_be_visible()
        self.close(page)

    def test_each_value_is_copied_and_the_secret_is_covered_until_it_is_asked_for(self):
        page = self.page()
        clipboard = "navigator.clipboard.readText()"
        assert self.dev.secret not in page.locator("body").inner_text()
        for name, value in {"Método": "POST", "URL do webhook": self.dev.hooks, "Cabeçalhos: Chave": self.dev.header,
                            "Cabeçalhos: Valor": self.dev.secret}.items():  # fmt: skip
            button = page.get_by_role("button", name=f"Copiar {name}")
            button.click()
            expect(button).to_have_text("Copiado")
            assert page.evaluate(clipboard) == value, name
        page.get_by_role("button", name="Mostrar").click()
        expect(page.locator("code", has_text=self.dev.secret)).to_be_visible()
        self.close(page)

    def test_everything_is_reached_with_the_keyboard_and_is_seen_to_be(self):
        page = self.page()
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Ir para o conteúdo")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        reached, focused = [], "document.activeElement"
        while len(reached) < 100 and page.evaluate(f"{focused} !== document.body"):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(f"{focused}.getAttribute('aria-label') ?? {focused}.textContent.trim()"))
            style = page.evaluate(f"{focused} === document.body || getComputedStyle({focused}).outlineStyle !== 'none'")
            assert style, f"the focus does not show on {reached[-1]}"
        for wanted in ("Copiar URL do webhook", "Mostrar", "Copiar Cabeçalhos: Valor", "Enviar um callback de teste", "Detalhes"):
            assert wanted in reached, (wanted, reached)
        details = page.get_by_role("button", name="Detalhes").first
        details.focus()
        page.keyboard.press("Enter")
        expect(details).to_have_attribute("aria-expanded", "true")
        expect(page.locator(".call pre").first).to_be_visible()
        page.keyboard.press("Space")
        expect(details).to_have_attribute("aria-expanded", "false")
        self.close(page)

    def test_a_test_callback_says_what_it_proves_and_is_no_call_of_weni(self):
        page = self.page()
        page.get_by_role("button", name="Enviar um callback de teste").click()
        expect(page.get_by_text("Direto no edge: aceito (200).")).to_be_visible()
        expect(page.get_by_text("Só uma mensagem enviada ao número do canal prova o lado da Weni.")).to_be_visible()
        newest = page.locator(".call").first
        expect(newest.locator(".what")).to_have_text("outro edge_test")
        expect(newest.locator(".own")).to_have_text("teste")
        self.close(page)

    def test_a_screen_reader_is_told_of_new_calls_together(self):
        page = self.page()
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        for _ in range(3):
            self.dev.call()
        expect(page.locator("#news")).to_have_text("3 chamadas novas.")
        page.get_by_role("button", name="Pausar").click()
        before = page.locator(".call").count()
        self.dev.call()
        expect(page.get_by_text("Pausado")).to_be_visible()
        page.wait_for_timeout(600)
        assert page.locator(".call").count() == before
        page.get_by_role("button", name="Continuar").click()
        expect(page.locator(".call")).to_have_count(before + 1)
        self.close(page)

    def test_axe_finds_nothing_in_light_and_dark_with_calls_and_details(self):
        for scheme in ("light", "dark"):
            page = self.page(color_scheme=scheme)
            expect(page.get_by_text("Ao vivo.")).to_be_visible()
            page.get_by_role("button", name="Detalhes").first.click()
            expect(page.locator(".call pre").first).to_be_visible()
            for language in ("Português", "English"):
                page.get_by_role("button", name=language).click()
                assert not (found := self.violations(page)), (scheme, language, found)
            self.close(page)

    def test_a_narrow_screen_needs_no_scrolling_to_the_side(self):
        page = self.page(viewport={"width": 320, "height": 640})
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 320
        self.close(page)

    def test_both_languages_have_the_same_texts(self):
        page = self.page()
        keys = "import('/inspector/texts.js').then(({texts}) => Object.values(texts).map((one) => Object.entries(one).map(([key, value]) => [key, typeof value, value.length ?? 0])))"  # fmt: skip
        portuguese, english = page.evaluate(keys)
        shape = lambda texts: [(key, kind, length if kind == "function" else None) for key, kind, length in texts]  # noqa: E731
        assert shape(portuguese) == shape(english)
        self.close(page)

    def test_a_page_of_yesterday_loads_itself_again_and_only_once(self):
        context = self.browser.new_context()
        page = context.new_page()
        loaded = []

        def old(route):
            answer = route.fetch()
            loaded.append(answer)
            route.fulfill(response=answer, body=re.sub(r'name="build" content="\w+"', 'name="build" content="0"', answer.text()))

        page.route("**/inspector", old)
        page.goto(self.dev.inspector)
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        page.wait_for_timeout(1000)
        assert len(loaded) == 2, f"a page that stays old was loaded {len(loaded)} times"
        context.close()

    def test_a_login_is_needed_and_a_wrong_token_is_said_so(self):
        page = self.page(self.elsewhere)
        expect(page.get_by_role("heading", name="Entrar")).to_be_visible()
        expect(page.get_by_label("Token de administração")).to_be_focused()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert not (found := self.violations(page)), found
        page.get_by_label("Token de administração").fill("not the token of anyone")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("Este não é o token.")
        assert "loja" not in page.content()
        self.log_in(page)
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/inspector"), cookie
        expect(page.get_by_text("A URL vem de http.public_url.")).to_be_visible()
        # No secure context: there is no clipboard for scripts, and copying works all the same.
        assert page.evaluate("navigator.clipboard === undefined")
        button = page.get_by_role("button", name="Copiar Cabeçalhos: Valor")
        button.click()
        expect(button).to_have_text("Copiado")
        page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), {id: 'pasted'}))")
        page.locator("#pasted").focus()
        page.keyboard.press("Control+V")
        expect(page.locator("#pasted")).to_have_value(SECRET)
        page.get_by_role("button", name="Sair").click()
        expect(page.get_by_role("heading", name="Entrar")).to_be_visible()
        assert SECRET not in page.content() and not page.context.cookies()
        self.close(page, allowed=["401"])

    def test_a_page_says_why_nothing_reaches_kafka(self):
        with tempfile.TemporaryDirectory() as work:
            serve = Serve(self.serve.binary, work, kafka="127.0.0.1:1")  # nothing listens there
            try:
                page = self.page(f"http://{serve.admin}/inspector")
                self.log_in(page)
                expect(page.get_by_text("Nada chega ao Kafka agora: no_broker.")).to_be_visible()
                page.get_by_role("button", name="English").click()
                expect(page.get_by_text("Nothing reaches Kafka now: no_broker.")).to_be_visible()
                page.get_by_role("button", name="Pause").click()
                expect(page.locator("#blocked")).to_be_hidden()
                page.get_by_role("button", name="Continue").click()
                expect(page.locator("#blocked")).to_be_visible()
                assert not (found := self.violations(page)), found
                serve.kafka = self.serve.kafka
                serve.kill()
                serve.start()
                page.get_by_label("Admin token").fill(TOKEN)
                page.keyboard.press("Enter")
                expect(page.get_by_text("Live.")).to_be_visible()
                serve_call = post(f"http://{serve.public}/hooks/loja", {"X-Token": SECRET}, status())
                assert serve_call == 200, serve_call
                expect(page.locator(".kafka.good")).to_be_visible()
                expect(page.locator("#blocked")).to_be_hidden()
                self.close(page, allowed=["401", "ERR_", "Failed to load"])
            finally:
                serve.end()

    def test_a_page_stays_with_an_edge_that_is_killed_and_starts_again(self):
        page = self.page(self.elsewhere)
        self.log_in(page)
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        self.serve.kill()
        expect(page.get_by_text("Sem conexão com o edge.")).to_be_visible()
        self.serve.start()
        # Sessions are in the edge's memory.
        expect(page.get_by_role("heading", name="Entrar")).to_be_visible()
        self.log_in(page)
        expect(page.get_by_text("Ao vivo.")).to_be_visible()
        self.close(page, allowed=["401", "ERR_", "Failed to load"])


def pictures(tests, folder):
    """What the person who pastes the URL sees: accepted and refused calls, in both languages."""
    page = tests.page(tests.elsewhere, viewport={"width": 1000, "height": 1180})
    tests.log_in(page)
    expect(page.get_by_text("Ao vivo.")).to_be_visible()
    url = f"http://{tests.serve.public}/hooks/loja"
    post(f"http://{tests.serve.public}/hooks/loga", {"X-Token": SECRET}, status())
    post(url, {"X-Token": "x" * 36}, status())
    post(url, {"Authorization": "Bearer 1"}, status())
    for name in ("sent", "delivered", "read"):
        post(url, {"X-Token": SECRET}, status(name))
    expect(page.locator(".kafka.good")).to_have_count(3)
    for language, name in (("Português", "inspector.pt-BR.png"), ("English", "inspector.png")):
        page.get_by_role("button", name=language).click()
        page.locator(".checklist").evaluate_all("all => all.forEach((one) => (one.open = false))")
        page.locator("h1").click()
        page.screenshot(path=folder / name)
    page.context.close()


def run(tests):
    expect.set_options(timeout=PATIENCE)
    passed = failed = 0
    for name in [name for name in vars(Tests) if name.startswith("test_")]:
        try:
            getattr(tests, name)()
            passed += 1
            print(f"test {name.removeprefix('test_')} ... ok", flush=True)
        except Exception:  # noqa: BLE001
            failed += 1
            print(f"test {name.removeprefix('test_')} ... FAILED\n{traceback.format_exc()}", flush=True)
    return passed, failed


def main():
    parser = argparse.ArgumentParser()
    for option in ("--work", "--edge", "--axe", "--browser"):
        parser.add_argument(option, required=True, type=Path)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures of the READMEs there")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work, sync_playwright() as playwright:
        started = []
        try:
            started.append(dev := Dev(arguments.edge))
            started.append(serve := Serve(arguments.edge, work, dev.kafka))
            options = [*sandbox, f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
            browser = playwright.chromium.launch(executable_path=arguments.browser, args=options)
            tests = Tests(browser, dev, serve, arguments.axe.read_text())
            passed, failed = run(tests)
            if arguments.pictures:
                pictures(tests, arguments.pictures)
            browser.close()
        finally:
            for process in started:
                process.end()
    print(f"{passed} passed, {failed} failed")
    return failed != 0


sys.exit(main())
