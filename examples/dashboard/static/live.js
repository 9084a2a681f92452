// Thumbnails that refresh, from the API through this application's own proxy. There is no token in
// this page: the session's cookie comes along by itself, and no script can read it.
(() => {
  const grid = document.getElementById("live");
  const note = document.getElementById("live-note");
  const { api, cameras, picture, server, every } = grid.dataset;
  const cards = new Map();

  // Reads from the API; a session that is over leads to the login and back.
  async function ask(path, options) {
    const answer = await fetch(api + path, options);
    if (answer.status === 401) {
      const { login_url: login } = await answer.json();
      const url = new URL(login, location);
      url.searchParams.set("next", location.pathname + location.search + location.hash);
      location.assign(url);
      return new Promise(() => {}); // this page is about to be left: nothing more happens on it
    }
    if (!answer.ok) throw new Error(`${answer.status} for ${path}`);
    return answer;
  }

  function element(name, className, text = "") {
    return Object.assign(document.createElement(name), { className, textContent: text });
  }

  function addCard(camera) {
    const card = element("li", "card"), frame = element("div", "picture");
    const caption = element("p", "seen", "…"), image = element("img", "");
    image.alt = `Live picture of ${camera.name}`;
    image.hidden = true;
    const empty = element("div", "nopicture", "Loading…");
    frame.append(image, empty);
    card.append(frame, element("h2", "", camera.name), caption);
    grid.append(card);
    cards.set(camera.cameraId ?? camera.id, { image, empty, caption });
  }

  async function refresh(id, card) {
    const path = picture.replace("{id}", encodeURIComponent(id));
    try {
      const answer = await ask(path, { signal: AbortSignal.timeout(15_000) });
      const blob = await answer.blob();
      const taken = Date.now() - 1000 * (answer.headers.get("Age") ?? 0); // the proxy may keep it
      const old = card.image.src;
      card.image.src = URL.createObjectURL(blob);
      await card.image.decode();
      if (old) URL.revokeObjectURL(old);
      card.image.hidden = false;
      card.empty.hidden = true;
      card.caption.textContent = `Taken at ${new Date(taken).toLocaleTimeString()}`;
    } catch {
      card.caption.textContent = card.image.hidden ? "No picture" : `${card.caption.textContent.replace(/ – .*/, "")} – no newer one`;
      card.empty.textContent = "No picture just now";
    }
  }

  async function round() {
    if (!document.hidden) {
      try {
        if (!cards.size) {
          const listed = await (await ask(cameras)).json();
          (listed.results ?? listed).forEach(addCard); // Eagle Eye's is a page of a list
        }
        note.textContent = cards.size ? `New pictures every ${every} seconds` : "This account has no cameras";
        // One after the other: the server makes pictures on the fly, and only so many at once.
        for (const [id, card] of cards) await refresh(id, card);
      } catch {
        note.textContent = `${server} does not answer just now`;
      }
    }
    setTimeout(round, 1000 * every);
  }

  round();
})();
