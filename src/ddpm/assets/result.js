// What runs give: results with their files and code, the gallery with its viewer and history, and settings in the address.
window.ddpmResult = (() => {
  const { make, ARROWS, offer, text, loaded, address } = window.ddpmPad;
  const MOST_RESULTS = 12;
  const places = {}; // by the name of the endpoint: what the page shows of its runs

  // An image of a gallery as a pad takes it.
  const pictureOf = (tile) => ({ image: tile.querySelector("img").src, label: (tile.matches("[data-settings] *") && tile.querySelector("span")?.textContent) || "" });

  // One image of a gallery, large, with what can be done with it.
  const viewer = (() => {
    const image = make("img", { alt: "" }), caption = make("p");
    const save = make("a", { class: "button" }, "Save");
    const rooms = { restore: ["Restore", "Restore"], edit: ["Edit", "Edit"], first: ["Edit", "Interpolate from"], second: ["Edit", "Interpolate to"] };
    const sends = Object.entries(rooms).map(([name, [tab, text]]) =>
      make("button", { type: "button", onclick: () => (dialog.close(), window.ddpm.sendTo(tab, name, pictureOf(tiles[index]))) }, `→ ${text}`));
    const dialog = make("dialog", { class: "viewer", "aria-label": "One image" },
      image, caption,
      make("div", { class: "row" }, make("button", { type: "button", onclick: () => step(-1) }, "Previous"),
        make("button", { type: "button", onclick: () => step(1) }, "Next"), save, ...sends,
        make("button", { type: "button", onclick: () => dialog.close() }, "Close")));
    let tiles = [], index = 0;
    function show() {
      const tile = tiles[index];
      image.src = tile.querySelector("img").src;
      image.alt = caption.textContent = tile.dataset.caption;
      save.href = tile.dataset.saved ?? image.src;
      save.download = tile.dataset.file;
    }
    function step(by) {
      index = (index + by + tiles.length) % tiles.length;
      show();
    }
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("keydown", (event) => event.key in ARROWS && (event.preventDefault(), step(ARROWS[event.key][0] || ARROWS[event.key][1])));
    dialog.addEventListener("close", () => tiles[index]?.focus());
    return {
      open(tile) {
        tiles = [...tile.parentElement.querySelectorAll(".tile")];
        index = tiles.indexOf(tile);
        if (!dialog.isConnected) document.body.append(dialog);
        show();
        dialog.showModal();
      },
    };
  })();

  // Settings: in the address, in a picture's text, and in the history; `fill` puts them into the fields.
  let fill = () => {}, limits = {};

  // An address or a picture may be of another model. limits: by name, the least and the largest number, or all choices
  function allowed(name, value, usual) {
    const limit = limits[name];
    if (!limit) return value;
    if (typeof usual !== "number") return limit.includes(value) ? value : usual;
    return Number.isFinite(+value) ? Math.min(Math.max(+value, limit[0]), limit[1]) : usual;
  }

  function fromAddress(names, usual, given) {
    limits = given;
    const address = new URLSearchParams(location.hash.slice(1));
    return names.map((name, index) => (address.has(name) ? allowed(name, address.get(name), usual[index]) : usual[index]));
  }

  // What the page opens with: the number of a press, the status and the fields. A result of before a reload is shown again
  // instead of being drawn again, which press -1 says.
  function opened(waiting, names, usual, given) {
    const values = fromAddress(names, usual, given);
    const again = places.generate?.kept?.(Object.fromEntries(names.map((name, index) => [name, values[index]])));
    return [again ? -1 : window.ddpm.random(), again ?? waiting, ...values];
  }

  function settings(element, props, trigger) {
    fill = (values) => {
      props.value = JSON.stringify(values);
      trigger("submit");
    };
  }

  // The values of the named fields in what `fill` was given; a field that is not named keeps its own.
  function fields(text, names, own) {
    const given = JSON.parse(text);
    return names.map((name, index) => (name in given ? allowed(name, given[name], own[index]) : own[index]));
  }

  // What a run gave, with links to its files. classes: the choice of all classes, then every class; null for no gallery.
  // key: where the browser keeps the results of a gallery. limit: bytes of a file that is dropped on it
  function result(element, props, watch, server, { name, saves, classes, key, limit }) {
    const row = make("div", { class: "saves" });
    const guess = make("label", { class: "guess" }, make("input", { type: "checkbox" }), "Show what the network expects (predicted x₀)");
    element.after(...(classes ? [guess, row] : [row]));
    const note = make("p", { class: "stale-note", role: "status" });
    element.before(note);
    const place = Object.assign((places[name] ??= { codes: {} }), { saves, last: null });
    place.show = (shown) => {
      place.last = shown;
      props.value = shown.html;
      mount(shown);
    };
    const mount = (shown) => {
      place.stale("");
      row.replaceChildren(...shown.files.map((file, index) => file && make("a", { href: file.url, download: file.orig_name }, saves[index])).filter(Boolean));
      for (const [label, text] of Object.entries(shown.code)) place.codes[label]?.(text);
      place.shown?.(shown);
    };
    // the result before stays until there is something of the new run to see
    watch("value", () => {
      if (!props.value && place.last) element.querySelector(".result").innerHTML = place.last.html;
    });
    // whether the images were seen while they came about
    let drawn = false;
    const moving = () => element.closest(".room")?.querySelector(".moving figure");
    if (classes) new MutationObserver(() => (drawn ||= Boolean(moving()))).observe(element.closest(".column"), { childList: true, subtree: true });
    place.take = (shown) => {
      const first = !place.last && classes && !drawn, calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      mount((place.last = shown));
      const film = element.querySelector(".film");
      if (first && !calm && film) play(film); // what one sees first is how images come about
      else if (classes && film) seek(film); // the visitor may want to see what the network expects
    };
    // Leave the pictures of a run that did not end, without files and code; those before can be brought back.
    place.leave = () => {
      const { last } = place;
      if (!moving()) return false;
      place.last = null;
      props.value = element.querySelector(".result").innerHTML = "";
      mount({ html: "", files: [], code: { Command: "", Python: "" } });
      if (last) note.replaceChildren(make("button", { type: "button", class: "small", onclick: () => place.show(last) }, "Show the result before"));
      return true;
    };
    // Show the result before, and say that it is not of this press.
    place.before = () => {
      if (!place.last) return;
      place.show(place.last);
      place.stale("This is the result before.");
    };
    place.stale = (words) => {
      note.classList.toggle("stale", Boolean(words)); // and so what follows it
      note.textContent = words;
    };
    if (classes) gallery(element, row, place, classes, key, limit, server);
  }

  // Earlier results, and the settings of a file that is opened here or dropped on the tab.
  function gallery(element, row, place, classes, key, limit, server) {
    const strip = make("div", { class: "history", role: "group", "aria-label": "Earlier results" });
    const chooser = make("input", { type: "file", accept: ".png,.gif,.npz", hidden: true, "aria-label": "Saved file" });
    row.after(strip, make("div", { class: "reopen" }, make("button", { type: "button", class: "small", onclick: () => chooser.click() }, "Open a saved file"),
      chooser, make("span", {}, "or drop it here: its settings come back.")));
    const results = recalled(key);
    const inShort = ({ given: { label, steps, seed, guidance }, stopped }) => [
      [classes.length < 2 ? "" : label === classes[0] ? "all" : label, `${steps} step${steps === 1 ? "" : "s"}`].filter(Boolean).join(", "),
      guidance === 1 ? "" : `guidance ${guidance}`, `seed ${seed}`, stopped?.replace(/ of .*/, "")].filter(Boolean);
    const said = (result) => `Shown again: ${inShort(result).join(", ")}.`;
    // The fields and the status tell of the pictures that are seen.
    const back = (result) => {
      place.show(result);
      fill({ ...result.given, status: said(result) });
    };
    const list = () => strip.replaceChildren(...(results.length < (place.last ? 2 : 1) ? [] : results).map((result) => {
      const words = Object.entries(result.given).map(([name, value]) => `${name} ${value}`).concat(result.stopped ?? []).join(", ");
      return make("button", { type: "button", title: words, "aria-label": `Back to ${words}`,
        "aria-current": result.html === place.last?.html && "true", onclick: () => back(result) },
        make("img", { src: result.image, alt: "" }), make("span", {}, inShort(result).join("\n")));
    }));
    list();
    // Show the result with these settings, if it is kept with its files. Returns the status, or null.
    place.kept = (given) => {
      const same = (result) => Object.entries(given).every(([name, value]) => result.given[name] === value);
      const result = results.find((one) => same(one) && (one.stopped || one.files.length));
      if (!result) return null;
      place.show(result);
      return said(result);
    };
    place.shown = (shown) => {
      if (!shown.html) return list();
      const parsed = make("template");
      parsed.innerHTML = shown.html;
      const tiles = parsed.content.querySelector(".tiles");
      const images = [...tiles.querySelectorAll("img")].map((image) => image.src);
      const given = JSON.parse(tiles.dataset.settings), passing = "passing" in tiles.dataset, { stopped } = tiles.dataset;
      if (!stopped) offer([...tiles.querySelectorAll(".tile")].map(pictureOf));
      history.replaceState(null, "", "#" + new URLSearchParams(given));
      const known = results.findIndex((result) => result.html === shown.html);
      if (known >= 0) results[known].files = shown.files; // those of an earlier server are gone
      else {
        if (passing && results[0]?.passing) results.shift();
        results.unshift(Object.assign(shown, { given, passing, stopped, image: images[0] }));
        results.length = Math.min(results.length, MOST_RESULTS);
      }
      store(key, results);
      list();
    };
    const panel = element.closest("[role=tabpanel]") ?? element;
    const reopen = async (file) => {
      if (!file) return;
      const { options, images, why } = await originOf(file, limit, server), name = text(file.name);
      if (!options) return fill({ status: `${name} ${why}` });
      const label = options.labels?.length === 1 ? classes[options.labels[0] + 1] : classes[0];
      const { sampler, steps, guidance, seed } = options;
      const known = place.kept({ label, sampler, steps, guidance, seed, number: images });
      if (!known) place.before();
      const status = `The settings of ${name}. ${known ?? "Press Generate to draw it."}`;
      fill({ ...options, number: images, label, again: false, status });
    };
    panel.addEventListener("drop", (event) => reopen(event.dataTransfer.files[0]));
    chooser.addEventListener("change", () => (reopen(chooser.files[0]), (chooser.value = "")));
  }

  // What a file says of how it was made; or why it says nothing.
  async function originOf(file, limit, server) {
    if (file.size > limit) return { why: `is too large: it has ${Math.ceil(file.size / 2 ** 20)} MB, and the limit is ${limit / 2 ** 20} MB.` };
    const data = await address(file), told = await server.origin(data).catch(() => ({}));
    if (told.options) return told;
    const picture = await loaded(data).catch(() => null);
    const hint = "Take a PNG, GIF or NPZ that was saved on this page.";
    return { why: picture ? `does not say how it was made. ${hint}` : `is not a picture. ${hint}` };
  }

  // The results of a gallery outlive a reload, like the settings. Those that are too many for the browser are left out.
  const server = () => window.gradio_config?.app_id;
  function store(key, results) {
    for (let number = results.length; number; number--)
      try {
        return sessionStorage.setItem(key, JSON.stringify({ server: server(), results: results.slice(0, number) }));
      } catch {
        sessionStorage.removeItem(key);
      }
  }
  function recalled(key) {
    const kept = JSON.parse(sessionStorage.getItem(key)) ?? { results: [] };
    if (kept.server !== server()) for (const result of kept.results) result.files = [];
    return kept.results;
  }

  // A film: the moments of a run, with a slider. One that follows a gallery shows its moments on the tiles there.
  function seek(film) {
    const range = film.querySelector("[type=range]"), frame = JSON.parse(film.dataset.frames)[range.value];
    film.querySelectorAll(".pair img").forEach((image, index) => (image.src = frame.pictures[index]));
    film.querySelector(".film-words").textContent = frame.words;
    range.style.setProperty("--range_progress", `${(100 * range.value) / range.max}%`);
    range.setAttribute("aria-valuetext", frame.words);
    if (film.classList.contains("on-tiles")) {
      const guess = film.closest("[role=tabpanel]").querySelector(".guess input").checked;
      const [noisy, clean] = frame.pictures, last = range.value === range.max ? null : noisy;
      project(film.previousElementSibling, guess ? clean ?? last : last);
    }
  }

  // Show a picture of all images of a gallery, as square as can be and with gaps of two pixels, on its tiles; null ends it.
  function project(gallery, picture) {
    const tiles = [...gallery.querySelectorAll(".tile")], across = Math.ceil(Math.sqrt(tiles.length));
    const down = Math.ceil(tiles.length / across), gap = tiles.length > 1 ? 2 : 0;
    gallery.classList.toggle("projected", picture !== null);
    tiles.forEach((tile, index) => {
      if (picture === null) return (tile.style.background = "");
      const { naturalWidth: width, naturalHeight: height } = tile.querySelector("img");
      const sizes = [[width, across, index % across], [height, down, Math.floor(index / across)]].map(([size, count, place]) => {
        const all = count * (size + gap) + gap, offset = gap + place * (size + gap);
        return [(100 * all) / size, all > size ? (100 * offset) / (all - size) : 0];
      });
      tile.style.background = `url(${picture}) ${sizes[0][1]}% ${sizes[1][1]}% / ${sizes[0][0]}% ${sizes[1][0]}%`;
    });
  }

  const FRAME = 110; // milliseconds
  const REPLAY = "Replay: how the images came about …";
  let playing = null, said = "";
  async function play(film) {
    const range = film.querySelector("[type=range]"), button = film.querySelector(".play"), mine = (playing = { film });
    if (button) button.textContent = "Pause";
    const status = film.closest("[role=tabpanel]").querySelector(".status");
    if (status.textContent !== REPLAY) said = status.innerHTML;
    status.textContent = REPLAY;
    const start = range.value === range.max ? 0 : +range.value;
    for (let place = start; place <= +range.max && playing === mine && film.isConnected; place++) {
      range.value = place;
      seek(film);
      await new Promise((resolve) => setTimeout(resolve, FRAME));
    }
    if (playing === mine) playing = null;
    if (button && playing?.film !== film) button.textContent = "Play";
    // the status may tell of another run by now
    if (status.textContent === REPLAY && !playing) status.innerHTML = said;
  }

  // Play a film from where it stands, or pause it.
  const toggle = (film) => (playing?.film === film ? (playing = null) : play(film));

  document.addEventListener("input", (event) => {
    const guess = event.target.closest?.(".guess");
    const film = guess ? guess.closest("[role=tabpanel]").querySelector(".on-tiles") : event.target.closest?.(".film");
    if (!film) return;
    playing = null;
    seek(film);
  });

  const WAITED = "Stopped while it waited.";  // as in press.py

  // The end of a run that was not refused: `html` is empty if it was stopped. Returns the status.
  function finished(name, status, html, ...given) {
    const place = places[name], code = given.slice(place.saves.length);
    if (html) {
      place.take({ html, files: given.slice(0, place.saves.length), code: { Command: code[0], Python: code[1] } });
      return status;
    }
    if (!status.startsWith("Stopped")) return status;
    if (place.leave()) return status;
    place.before();
    return status === WAITED ? status : "Stopped before the first step.";
  }

  // The message of an error that has just come, for the status line. Gradio shows it a moment after it tells of the error.
  async function refused(name) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const said = [...document.querySelectorAll("[data-testid=toast-text]")].map((toast) => toast.textContent.trim());
    document.querySelectorAll("[data-testid=toast-close]").forEach((button) => button.click()); // once is enough
    const place = places[name], lost = await window.ddpm.lost(said.length ? 1 : 20);
    if (!(lost && place?.leave())) place?.before();
    return text(lost || said.pop() || "That did not work.");
  }

  // A text to copy, which a result brings.
  function code(element, name, label) {
    let words = "";
    const box = make("pre", { tabindex: 0, role: "region", "aria-label": label });
    const copy = make("button", { type: "button", class: "copy", "aria-label": `Copy: ${label}`, async onclick() {
      await navigator.clipboard.writeText(words);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 2000);
    } }, "Copy");
    const show = (given) => {
      words = given;
      box.textContent = words || "Appears with the result.";
      copy.hidden = !words;
    };
    const place = (places[name] ??= { codes: {} });
    place.codes[label] = show;
    show(place.last?.code[label] ?? ""); // the box is made when it is first opened
    element.querySelector(".code").replaceChildren(make("div", { class: "code-head" }, make("span", {}, label), copy), box);
  }

  return { viewer, toggle, result, finished, refused, code, settings, fields, opened, stale: (name) => places[name]?.last && places[name].stale("This is of the picture before.") };
})();
