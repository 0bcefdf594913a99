// The page's own behaviour: the gallery and its viewer, history, settings in the address, the switcher of models, and the
// keyboard. Gradio calls these functions when it has made their elements.
window.ddpm = (() => {
  const { make, pads, pad, marking, ready } = window.ddpmPad;
  const { viewer, toggle, ...results } = window.ddpmResult;

  // A choice: a list, or buttons side by side. options: label, info (may be empty), choices, chips
  let groups = 0;
  function choice(element, props, trigger, watch, options) {
    const title = make("span", {}, props.label ?? options.label), info = options.info ? [make("small", {}, options.info)] : [];
    const choose = (value) => ((props.value = value), trigger("change"), trigger("input"));
    const group = `choice${groups++}`;
    const select = make("select", { onchange: () => choose(select.value) },
      ...options.choices.map((name) => make("option", { value: name }, name)));
    const radios = options.choices.map((name) =>
      make("input", { type: "radio", name: group, value: name, "aria-label": name, onchange: () => choose(name) }));
    const show = () => {
      title.textContent = props.label ?? options.label;
      if (options.chips) radios.forEach((radio) => (radio.checked = radio.value === props.value));
      else select.value = props.value;
    };
    watch(["value", "label"], show);
    show();
    // the first choice is "all" of them
    const even = options.choices.slice(1).every((name) => name.length < 3);
    element.querySelector(".choice").replaceChildren(options.chips
      ? make("div", { class: even ? "chips even" : Object.keys(options.short).length ? "chips" : "chips wide", style: `--count:${options.choices.length + 1}`, role: "radiogroup", "aria-label": options.label }, title, ...info,
        ...radios.map((radio) => make("label", { title: radio.value }, radio, options.short[radio.value] ?? radio.value)))
      : make("label", {}, title, ...info, select));
  }

  // The room that a person sees now, and a button of it.
  const room = () => [...document.querySelectorAll("[role=tabpanel]")].find((panel) => panel.offsetParent) || document;
  const seen = (selector) => [...room().querySelectorAll(selector)].find((element) => element.offsetParent);

  // Press the button of the open tab, unless a run lasts. A number that one still types is judged first, as after leaving it.
  function press() {
    const field = document.activeElement;
    if (field?.type === "number") field.dispatchEvent(new Event("change", { bubbles: true }));
    seen(".start")?.click();
  }

  function openTab(name) {
    [...document.querySelectorAll("[role=tab]")].find((tab) => tab.textContent.trim() === name)?.click();
  }

  function reopen() {
    const name = sessionStorage.getItem(TAB);
    if (name) openTab(name);
  }

  // A tab is built when it is first opened, so its pad may have to be waited for.
  async function sendTo(tab, name, source) {
    openTab(tab);
    for (let tries = 0; tries < 200 && !pads[name]; tries++) await new Promise((resolve) => setTimeout(resolve, 50));
    pads[name]?.take(source);
  }

  // The class that the picture to edit shows, if it is known, for a way to edit that asks for it; else the present choice.
  const shown = ([asking, unknown], way, now) => (way === asking ? pads.edit?.label() || unknown : now);

  // The switcher of models. `use` opens the page of one, which the server makes when it is asked for the first time.
  let use = () => {};
  function models(element, server, current, groups) {
    const select = make("select"), said = make("span", { role: "status" }, "Model"), note = make("span", { role: "alert" });
    let known = "";
    const refresh = async () => list(await server.listing(""));
    function list(groups) {
      if (JSON.stringify(groups) === known) return;
      known = JSON.stringify(groups);
      select.replaceChildren(...Object.entries(groups).map(([kind, names]) =>
        make("optgroup", { label: kind }, ...Object.entries(names).map(([name, shown]) => make("option", { value: name }, shown)))));
      select.value = current;
      element.hidden = select.options.length < 2;
    }
    use = async (name, elsewhere = true) => {
      if (elsewhere) sessionStorage.removeItem(TAB);
      said.textContent = "Loading …";
      note.textContent = "";
      select.disabled = true;
      const answer = await server.open_model(name).catch(() => ({ error: "The server does not answer." }));
      if (answer.path) return location.assign(location.pathname.replace(/\/(models\/\d+\/?)?$/, "") + answer.path);
      note.textContent = answer.error;
      said.textContent = "Model";
      select.disabled = false;
      select.value = current;
    };
    select.addEventListener("change", () => use(select.value));
    for (const event of ["pointerenter", "focus"]) select.addEventListener(event, refresh);
    element.replaceChildren(make("label", {}, said, select), note);
    const wanted = sessionStorage.getItem(MODEL);
    sessionStorage.removeItem(MODEL);
    if (wanted && wanted !== current) use(wanted, false);
    model = current;
    list(groups);
  }

  // What outlives a reload, for as long as this tab of the browser is open: the settings of each tab, and which one is open.
  const TAB = "ddpm/tab", MODEL = "ddpm/model";
  const keep = (key, values) => sessionStorage.setItem(key, JSON.stringify(values));
  function recall(key, own) {
    const kept = JSON.parse(sessionStorage.getItem(key)) ?? [];
    return kept.length === own.length ? kept : own;
  }

  // The server may be stopped and started again. Say so, and go on when it is back. The page of a model that was opened with
  // the switcher is gone then, so the first page opens it again.
  const EVERY = 2000; // milliseconds
  const banner = make("p", { class: "lost", role: "alert" });
  let model = null, serverId = null;
  const GONE = "The server was stopped. Start it again in its terminal, with the same command. This page then goes on.";
  const ask = () => fetch(`${window.gradio_config.root}${window.gradio_config.api_prefix}/app_id`, { cache: "no-store" }).catch(() => null);
  async function watchServer() {
    if (document.hidden || !window.gradio_config) return;
    const answer = await ask();
    if (!answer) {
      banner.textContent = GONE;
      // nothing will be drawn any more
      for (const running of document.querySelectorAll(".status .running, .status .drawing")) running.parentElement.textContent = GONE;
      return document.body.append(banner);
    }
    banner.remove();
    if (answer.status === 404) {
      sessionStorage.setItem(MODEL, model);
      return location.replace(location.pathname.replace(/models\/\d+\/?$/, "") + location.hash);
    }
    const now = (await answer.json()).app_id;
    if (serverId !== null && serverId !== now) location.reload();
    serverId = now;
  }
  setInterval(watchServer, EVERY);

  // What to do about a server that has gone; nothing if it answers. It may take a while to go.
  async function lost(tries) {
    for (; tries; tries--) {
      if (!(await ask())) return GONE;
      if (tries > 1) await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }
  document.addEventListener("visibilitychange", watchServer);

  // Give a field a value, as if it were typed.
  function put(field, value) {
    if (field.value === String(value)) return;
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  // What is wrong with the number in a field is said beside it while one types. It is replaced when one leaves the field.
  const good = new WeakMap(); // the last possible number of a field
  function wrong({ value, min, max, step, validity }) {
    if (value === "") return validity.badInput ? "This is not a number." : "";
    const whole = step === "1" && !Number.isInteger(+value), outside = (min !== "" && +value < +min) || (max !== "" && +value > +max);
    if (!whole && !outside) return "";
    const range = min === "" && max === "" ? "" : max === "" ? `, at least ${min}` : ` from ${min || 0} to ${max}`;
    return `${step === "1" ? "A whole number" : "A number"}${range}.`;
  }
  function note(field, words) {
    const place = field.closest(".seed") ?? field.closest(".block") ?? field.parentElement;
    place.querySelector(".field-note")?.remove();
    if (words) place.append(make("small", { class: "field-note", role: "status" }, words));
  }
  document.addEventListener("focusin", ({ target }) => target.type === "number" && !wrong(target) && target.value !== "" && good.set(target, target.value));
  document.addEventListener("input", (event) => {
    const field = event.target;
    if (field.type !== "number" || !event.isTrusted) return;
    const why = wrong(field);
    note(field, why);
    if (!why && field.value !== "") good.set(field, field.value);
  }, true);
  document.addEventListener("change", (event) => {
    const field = event.target, typed = field.value, why = wrong(field);
    if (field.type !== "number") return;
    if (typed !== "" && !why) return put(field, +typed); // 1e3 is 1000
    const { min, max, step } = field, near = step === "1" ? Math.round(+typed) : +typed;
    const possible = typed === "" ? good.get(field) : Math.min(Math.max(near, min === "" ? -Infinity : min), max === "" ? Infinity : max);
    if (possible === undefined) return;
    put(field, possible);
    note(field, `${why} ${typed === "" ? `${possible} is kept` : `${typed} became ${possible}`}.`.trim());
  }, true);

  let stop = () => {}, dismiss = () => {};
  function stopper(element, server) {
    dismiss = async (button) => {
      await server.dismiss(button.dataset.dismiss);
      button.parentElement.remove();
    };
    stop = async (button) => {
      button.disabled = true;
      button.textContent = await server.stop_training(button.dataset.stop);
    };
  }

  // Gradio tells the place in its queue in a part of the page that is not shown: say it in the status.
  function queued() {
    for (const told of document.querySelectorAll(".status-block .progress-text")) {
      const place = /queue: (\d+)/.exec(told.textContent)?.[1];
      const status = told.closest(".status-block").querySelector(".running");
      if (place && status?.textContent.startsWith("Waiting")) {
        const words = `Waiting for the model: number ${place} in the queue …`;
        if (status.textContent !== words) status.textContent = words;
      }
    }
  }

  // One stop of the Tab key for all tabs: the open one. Arrow keys move between them.
  function rove() {
    for (const tab of document.querySelectorAll("[role=tablist] [role=tab]")) {
      const stop = tab.getAttribute("aria-selected") === "true" ? 0 : -1;
      if (tab.tabIndex !== stop) tab.tabIndex = stop;
    }
  }
  new MutationObserver(() => (rove(), queued())).observe(document, { childList: true, characterData: true, subtree: true, attributeFilter: ["aria-selected"] });

  // A file can be dropped, and one that is dropped beside the places for it must not make the browser leave the page.
  for (const event of ["dragover", "drop"]) document.addEventListener(event, (dropped) => dropped.preventDefault());

  const random = () => Math.floor(Math.random() * 2 ** 32);

  document.addEventListener("click", (event) => {
    // the second press of a double press meets Stop, which has taken the place of the button
    if (event.detail > 1 && event.target.closest?.(".start, .stop")) event.stopImmediatePropagation();
    const tile = event.target.closest?.(".tile");
    if (tile) viewer.open(tile);
    const tab = event.target.closest?.("[role=tab]");
    if (tab) sessionStorage.setItem(TAB, tab.textContent.trim());
    const player = event.target.closest?.(".play");
    if (player) toggle(player.closest(".film"));
    const chosen = event.target.closest?.("[data-use], [data-stop], [data-dismiss]")?.dataset;
    if (chosen) chosen.use ? use(chosen.use) : (chosen.stop ? stop : dismiss)(event.target.closest("button"));
  }, true);

  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.("[role=tab]");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) press();
    else if (event.key === "Escape" && !document.querySelector("dialog[open]")) seen(".stop")?.click();
    else if (tab && ["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) {
      event.preventDefault();
      const tabs = [...tab.parentElement.querySelectorAll("[role=tab]")], last = tabs.length - 1, at = tabs.indexOf(tab);
      const next = tabs[{ ArrowLeft: at ? at - 1 : last, ArrowRight: at === last ? 0 : at + 1, Home: 0, End: last }[event.key]];
      next.focus();
      next.click();
    }
  }, true);

  return { ...results, press, pad, marking, ready, choice, sendTo, shown, reopen, keep, recall, models, stopper, random, lost };
})();
