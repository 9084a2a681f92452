// Warns a person two minutes before the session ends, and offers to stay.
//
//   <script src="/static/session-warning.js" data-prefix="/auth" data-warn="120" defer></script>
//
// Requesting /auth/session does not count as activity, so the session of an absent user still ends. To
// stay logged in, it requests the current page, which counts. Style .session-warning as you like.
(() => {
  const { prefix = "/auth", warn = "120" } = document.currentScript.dataset;
  const page = location.pathname + location.search + location.hash;
  const login = `${prefix}/login?next=${encodeURIComponent(page)}`;
  const box = Object.assign(document.createElement("div"), { className: "session-warning" });
  box.setAttribute("role", "alert");
  let timer;

  function show(text, ...actions) {
    box.replaceChildren(Object.assign(document.createElement("p"), { textContent: text }), ...actions);
    document.body.append(box);
  }

  function link(label) {
    return Object.assign(document.createElement("a"), { href: login, textContent: label });
  }

  async function stay() {
    await fetch(location.href); // any request of this page's own is a use of the session
    if (await check()) show("Your session has reached its longest time.", link("Log in again"));
  }

  // Returns whether the session is about to end.
  async function check() {
    clearTimeout(timer);
    let session;
    try {
      const answer = await fetch(`${prefix}/session`, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      session = await answer.json();
    } catch {
      timer = setTimeout(check, 60_000); // no network, or a server that restarts: nobody is out
      return false;
    }
    if (!session.authenticated) {
      show("You are logged out.", link("Log in again"));
      return false;
    }
    const left = session.expires_in, ending = left <= Number(warn);
    if (ending) {
      const button = Object.assign(document.createElement("button"), { textContent: "Stay logged in" });
      button.addEventListener("click", stay);
      show(`You will be logged out in ${Math.max(1, Math.round(left / 60))} min.`, button);
    } else {
      box.remove(); // another tab was used meanwhile
    }
    timer = setTimeout(check, 1000 * Math.max(5, Math.min(ending ? left : left - warn, 86_400)));
    return ending;
  }

  document.addEventListener("visibilitychange", () => document.hidden || check());
  check();
})();
