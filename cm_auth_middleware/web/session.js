// Warns a person before the session ends, and leads them to the login and back once it has ended.
//
//   <script src="/auth/session.js" data-warn="120"></script>
//
// Put it into the head, before the scripts that open sockets. It asks /auth/session every 30 seconds,
// and at once when a response has status 401 or a socket closes; that does not count as activity.
(() => {
  const isLoaded = Symbol.for("cm_auth_middleware.session");
  if (window[isLoaded]) return; // some frameworks load a script each time they draw
  window[isLoaded] = true;

  const TEXTS = {
    en: {
      ends: "You will be logged out in {minutes} min.",
      stay: "Stay logged in",
      longest: "You will be logged out in {minutes} min: your session has reached its longest time.",
      over: "You are logged out",
      login: "Log in again",
    },
    nl: {
      ends: "U wordt over {minutes} min. uitgelogd.",
      stay: "Ingelogd blijven",
      longest: "U wordt over {minutes} min. uitgelogd: uw sessie heeft haar maximale duur bereikt.",
      over: "U bent uitgelogd",
      login: "Opnieuw inloggen",
    },
    de: {
      ends: "Sie werden in {minutes} Min. abgemeldet.",
      stay: "Angemeldet bleiben",
      longest: "Sie werden in {minutes} Min. abgemeldet: Ihre Sitzung hat ihre längste Dauer erreicht.",
      over: "Sie sind abgemeldet",
      login: "Erneut anmelden",
    },
    fr: {
      ends: "Vous serez déconnecté dans {minutes} min.",
      stay: "Rester connecté",
      longest: "Vous serez déconnecté dans {minutes} min : votre session a atteint sa durée maximale.",
      over: "Vous êtes déconnecté",
      login: "Se reconnecter",
    },
    es: {
      ends: "Su sesión se cerrará en {minutes} min.",
      stay: "Mantener la sesión",
      longest: "Su sesión se cerrará en {minutes} min: ha alcanzado su duración máxima.",
      over: "Ha cerrado la sesión",
      login: "Volver a iniciar sesión",
    },
  };
  const STYLE = `
    dialog { color-scheme: light dark; box-sizing: border-box; max-width: min(26rem, calc(100vw - 2rem));
      padding: 1.25rem; border: 1px solid GrayText; border-radius: 12px; background: Canvas;
      color: CanvasText; font: 1rem/1.5 system-ui, sans-serif; box-shadow: 0 8px 30px rgb(0 0 0 / .3) }
    dialog:not(:modal) { position: fixed; inset: auto 1rem 1rem auto; margin: 0; z-index: 2147483647 }
    dialog::backdrop { background: rgb(0 0 0 / .6) }
    p { margin: 0 0 1rem }
    a, button { display: inline-block; padding: .5rem 1rem; border: 0; border-radius: 8px;
      background: #2b4acb; color: #fff; font: inherit; text-decoration: none; cursor: pointer }
    :focus-visible { outline: 3px solid Highlight; outline-offset: 2px }`;

  const script = document.currentScript ?? document.querySelector('script[src*="/session.js"]');
  const prefix = new URL(".", script?.src ?? new URL("/auth/", location.href));
  const language = navigator.languages.map((name) => name.slice(0, 2)).find((name) => name in TEXTS);
  const text = TEXTS[language ?? "en"];
  const earliest = Number(script?.dataset.warn) || 120; // seconds before the end
  const every = 30; // seconds
  const ask = window.fetch.bind(window);

  // -- the box -------------------------------------------------------------------------------

  const place = document.createElement("cm-session"); // no style of the page is about it
  const box = document.createElement("dialog");
  const sheet = new CSSStyleSheet(); // a Content-Security-Policy may forbid a style element
  sheet.replaceSync(STYLE);
  const root = place.attachShadow({ mode: "open" });
  root.adoptedStyleSheets = [sheet];
  root.append(box);
  box.setAttribute("aria-labelledby", "words");
  // A framework's own dialog, such as "connection lost", makes all else in the body inert.
  new MutationObserver(() => {
    for (const name of ["inert", "aria-hidden"]) place.removeAttribute(name);
  }).observe(place, { attributeFilter: ["inert", "aria-hidden"] });
  // Escape leaves the box in the corner: a person may want to copy what they typed.
  box.addEventListener("cancel", (event) => {
    event.preventDefault();
    box.close();
    box.open = true;
  });

  function show(words, action) {
    if (box.open && words === box.textContent.slice(0, words.length)) return; // it was read out
    const line = document.createElement("p");
    line.id = "words";
    line.setAttribute("role", "alert");
    line.textContent = words;
    box.replaceChildren(line, action);
    if (!place.isConnected) document.documentElement.append(place);
    box.open = true; // show() would take the focus from a person who types
  }

  function loginLink() {
    const link = document.createElement("a");
    const login = new URL("login", prefix);
    login.searchParams.set("next", location.pathname + location.search + location.hash);
    link.href = login.href;
    link.target = "_top"; // the server's login refuses to be framed
    link.textContent = text.login;
    return link;
  }

  function stayButton() {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text.stay;
    button.addEventListener("click", () => look("POST"));
    return button;
  }

  // -- the looks -----------------------------------------------------------------------------

  let timer;
  let due = Infinity; // when the next look is (ms)
  let lookedAt = -Infinity;
  let longest = 0; // seconds that were left at most
  let isFinal = false; // true if nothing can extend the session
  let wasLoggedIn = false;
  let isOver = false;

  function lookIn(seconds) { // or earlier, if that was planned
    const at = Date.now() + 1000 * seconds;
    if (isOver || at >= due) return;
    due = at;
    clearTimeout(timer);
    timer = setTimeout(() => look(), 1000 * seconds);
  }

  const lookSoon = () => lookIn(Math.max(0, (lookedAt - Date.now()) / 1000 + 1));

  // A POST counts as activity.
  async function look(method = "GET") {
    if (isOver) return;
    due = Infinity;
    lookIn(every);
    if (document.hidden) return; // a look follows when the person comes back
    lookedAt = Date.now();
    let session;
    try {
      const answer = await ask(new URL("session", prefix), { method, cache: "no-store" });
      if (!answer.ok) return;
      session = await answer.json();
    } catch {
      return; // no network, or a server that restarts: the session is not over
    }
    if (session.authenticated) stays(session.expires_in, method === "POST");
    else if (wasLoggedIn) ends();
  }

  function stays(left, wasExtended) {
    wasLoggedIn = true;
    longest = Math.max(longest, left);
    const warn = Math.min(earliest, longest / 2);
    if (left > warn) {
      isFinal = false;
      if (box.open) box.close(); // the session was used meanwhile, here or in another tab
      lookIn(left - warn);
      return;
    }
    isFinal ||= wasExtended;
    const minutes = Math.max(1, Math.round(left / 60));
    const words = (isFinal ? text.longest : text.ends).replace("{minutes}", minutes);
    show(words, isFinal ? loginLink() : stayButton());
    lookIn(left + 1);
  }

  function ends() {
    isOver = true;
    clearTimeout(timer);
    show(text.over, loginLink());
    box.close();
    box.showModal(); // what is behind it is dead
  }

  // -- the signs that the session may be over ------------------------------------------------

  function watch(name, event, isSign) {
    const Original = window[name];
    window[name] = class extends Original {
      constructor(...given) {
        super(...given);
        this.addEventListener(event, () => isSign(this) && lookSoon());
      }
    };
  }

  watch("WebSocket", "close", () => true);
  watch("EventSource", "error", () => true);
  watch("XMLHttpRequest", "loadend", (request) => request.status === 401);
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (answer.status === 401) lookSoon();
    return answer;
  };
  document.addEventListener("visibilitychange", lookSoon);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) isOver ? location.reload() : lookSoon(); // from the back/forward cache
  });
  look();
})();
