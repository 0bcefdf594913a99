// The page's own behaviour: the gallery and its viewer, history, settings in the address, the switcher of models, and the
// keyboard. Gradio calls these functions when it has made their elements.
window.ddpm = (() => {
  const { make, ARROWS, pads, pad, offer, ready } = window.ddpmPad;
  const MOST_RESULTS = 12;

  // A list to choose from. options: label, info (may be empty), choices
  function choice(element, props, trigger, watch, options) {
    const select = make("select", {}, ...options.choices.map((name) => make("option", { value: name }, name)));
    const info = options.info ? [make("small", {}, options.info)] : [];
    select.value = props.value;
    select.addEventListener("change", () => ((props.value = select.value), trigger("change")));
    watch("value", () => (select.value = props.value));
    element.querySelector(".choice").replaceChildren(make("label", {}, make("span", {}, options.label), ...info, select));
  }

  // A text to copy.
  function code(element, props, watch, label) {
    const text = make("pre", { tabindex: 0, role: "region", "aria-label": label });
    const copy = make("button", { type: "button", class: "copy", "aria-label": `Copy: ${label}`, async onclick() {
      await navigator.clipboard.writeText(props.value);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 2000);
    } }, "Copy");
    const show = () => {
      text.textContent = props.value || "Appears with the result.";
      copy.hidden = !props.value;
    };
    watch("value", show);
    show();
    element.querySelector(".code").replaceChildren(make("div", { class: "code-head" }, make("span", {}, label), copy), text);
  }

  // The room that a person sees now, and a button of it.
  const room = () => [...document.querySelectorAll("[role=tabpanel]")].find((panel) => panel.offsetParent) || document;
  const seen = (selector) => [...room().querySelectorAll(selector)].find((element) => element.offsetParent);

  function openTab(name) {
    const tabs = [...document.querySelectorAll("[role=tab], .overflow-dropdown button")];
    tabs.find((tab) => tab.textContent.trim() === name)?.click();
  }

  // A tab is built when it is first opened, so its pad may have to be waited for.
  async function sendTo(tab, name, source) {
    openTab(tab);
    for (let tries = 0; tries < 200 && !pads[name]; tries++) await new Promise((resolve) => setTimeout(resolve, 50));
    pads[name]?.take(source);
  }

  // One image of a gallery, large, with what can be done with it.
  const viewer = (() => {
    const image = make("img", { alt: "" }), caption = make("p");
    const save = make("a", { class: "button" }, "Save");
    const rooms = { restore: ["Restore", "Restore"], edit: ["Edit", "Edit"], first: ["Edit", "Interpolate from"], second: ["Edit", "Interpolate to"] };
    const sends = Object.entries(rooms).map(([name, [tab, text]]) =>
      make("button", { type: "button", onclick: () => (dialog.close(), sendTo(tab, name, image.src)) }, `→ ${text}`));
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
      save.href = image.src;
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

  // Settings: in the address, in a picture's text, and in the history; `apply` puts them into the fields.
  let fill = () => {}, back = () => {};
  const results = [];

  function fromAddress(names, usual) {
    const given = new URLSearchParams(location.hash.slice(1));
    return names.map((name, index) => {
      if (!given.has(name)) return usual[index];
      const text = given.get(name);
      return typeof usual[index] === "number" ? (Number.isFinite(+text) ? +text : usual[index]) : text;
    });
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
    return names.map((name, index) => given[name] ?? own[index]);
  }

  // classes: the choice of all classes, then every class
  function gallery(element, props, watch, classes) {
    const strip = make("div", { class: "history", role: "group", "aria-label": "Earlier results" });
    element.after(strip);
    // The files and the command belong to what the server sent last; they are hidden beside anything else.
    let shown = null, fresh = false;
    const past = (is) => strip.classList.toggle("past", is); // not on an element of Gradio's, which resets its classes
    function show(result, newest) {
      shown = props.value = result.html;
      past(!newest);
      setTimeout(keep);
    }
    back = () => element.querySelector(".tiles") || (results.length && show(results[0], false));
    function keep() {
      const tiles = element.querySelector(".tiles");
      if (!tiles) {
        shown = null;
        fresh = false;
        return past(false);
      }
      const sources = [...tiles.querySelectorAll("img")].map((image) => image.src);
      offer(sources);
      const given = JSON.parse(tiles.dataset.settings);
      history.replaceState(null, "", "#" + new URLSearchParams(given));
      if (props.value === shown) return;
      shown = props.value;
      fresh = true;
      past(false);
      const earlier = results.findIndex((result) => result.html === shown);
      if (earlier >= 0) results.splice(earlier, 1);
      const passing = "passing" in tiles.dataset;
      if (passing && results[0]?.passing) results.shift();
      results.unshift({ html: shown, given, passing, image: sources[0] });
      results.length = Math.min(results.length, MOST_RESULTS);
      strip.replaceChildren(...(results.length < 2 ? [] : results).map((result) => {
        const words = Object.entries(result.given).map(([name, value]) => `${name} ${value}`).join(", ");
        return make("button", { type: "button", title: words, "aria-label": `Back to ${words}`,
          onclick: () => (show(result, fresh && result === results[0]), fill(result.given)) }, make("img", { src: result.image, alt: "" }));
      }));
    }
    watch("value", keep);
    const panel = element.closest("[role=tabpanel]") ?? element;
    panel.addEventListener("dragover", (event) => event.preventDefault());
    panel.addEventListener("drop", async (event) => {
      event.preventDefault();
      const file = event.dataTransfer.files[0];
      if (!file) return;
      const told = texts(await file.arrayBuffer()).ddpm;
      const { options, images } = told ? JSON.parse(told) : {};
      const name = make("span", {}, file.name).innerHTML;
      if (!options) return fill({ status: `${name} does not say how it was made.` });
      const label = options.labels?.length === 1 ? classes[options.labels[0] + 1] : classes[0];
      fill({ ...options, number: images, label, again: false, status: `The settings of ${name}. Press Generate to draw it.` });
    });
  }

  // The uncompressed texts of a PNG, by keyword (PNG specification, 11.3.4.3 and 11.3.4.5).
  function texts(buffer) {
    const view = new DataView(buffer), found = {}, decoder = new TextDecoder();
    for (let at = 8; at + 12 <= buffer.byteLength; ) {
      const size = view.getUint32(at), kind = decoder.decode(new Uint8Array(buffer, at + 4, 4));
      if (kind === "tEXt" || kind === "iTXt") {
        const words = decoder.decode(new Uint8Array(buffer, at + 8, size)).split("\0");
        found[words[0]] = words[words.length - 1];
      }
      at += size + 12;
    }
    return found;
  }

  // The message of an error that has just come, for the status line. Gradio shows it a moment after it tells of the error.
  async function reason() {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const texts = [...document.querySelectorAll("[data-testid=toast-text]")].map((toast) => toast.textContent.trim());
    back();
    return make("span", {}, texts.pop() || "That did not work.").innerHTML;
  }

  // The switcher of models. `use` opens the page of one, which the server makes when it is asked for the first time.
  let use = () => {};
  function models(element, server, current) {
    const select = make("select"), note = make("span", { role: "status" });
    let known = "";
    async function refresh() {
      const groups = await server.listing("");
      if (JSON.stringify(groups) === known) return;
      known = JSON.stringify(groups);
      select.replaceChildren(...Object.entries(groups).map(([kind, names]) =>
        make("optgroup", { label: kind }, ...Object.entries(names).map(([name, shown]) => make("option", { value: name }, shown)))));
      select.value = current;
      element.hidden = select.options.length < 2;
    }
    use = async (name) => {
      note.textContent = `Loading ${name} …`;
      select.disabled = true;
      const answer = await server.open_model(name).catch(() => ({ error: "The server does not answer." }));
      if (answer.path) return location.assign(location.pathname.replace(/\/(models\/\d+\/?)?$/, "") + answer.path);
      note.textContent = answer.error;
      select.disabled = false;
      select.value = current;
    };
    select.addEventListener("change", () => use(select.value));
    for (const event of ["pointerenter", "focus"]) select.addEventListener(event, refresh);
    element.replaceChildren(make("label", {}, "Model ", select), note);
    refresh();
  }

  let stop = () => {};
  function stopper(element, server) {
    stop = async (button) => {
      button.disabled = true;
      button.textContent = await server.stop_training(button.dataset.stop);
    };
  }

  const random = () => Math.floor(Math.random() * 2 ** 32);

  document.addEventListener("click", (event) => {
    // the second press of a double press meets Stop, which has taken the place of the button
    if (event.detail > 1 && event.target.closest?.(".start, .stop")) event.stopImmediatePropagation();
    const tile = event.target.closest?.(".tile");
    if (tile) viewer.open(tile);
    const chosen = event.target.closest?.("[data-use], [data-stop]");
    if (chosen) chosen.dataset.use ? use(chosen.dataset.use) : stop(chosen);
  }, true);

  document.addEventListener("input", (event) => {
    const film = event.target.closest?.(".film");
    if (!film) return;
    const frame = JSON.parse(film.dataset.frames)[event.target.value];
    film.querySelectorAll("img").forEach((image, index) => (image.src = frame.pictures[index]));
    film.querySelector(".film-words").textContent = frame.words;
    event.target.setAttribute("aria-valuetext", frame.words);
  });

  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.("[role=tab]");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) seen(".start")?.click();
    else if (event.key === "Escape" && !document.querySelector("dialog[open]")) seen(".stop")?.click();
    else if (tab && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      const tabs = [...tab.parentElement.querySelectorAll("[role=tab]")];
      const next = tabs[(tabs.indexOf(tab) + (event.key === "ArrowRight" ? 1 : -1) + tabs.length) % tabs.length];
      next.focus();
      next.click();
    }
  }, true);

  return { pad, ready, choice, code, gallery, settings, fields, fromAddress, reason, back: () => back(), models, stopper, random };
})();
