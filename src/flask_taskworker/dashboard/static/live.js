// Keeps the page fresh: fetches it again and puts in what has changed, without losing focus, ticks or open details.
// Everything works without it. Settings are remembered in localStorage.
"use strict";
(() => {
  const root = document.documentElement;
  const settings = { theme: "auto", zone: "utc", every: "5", keys: "on" };
  const key = (name) => "taskworker." + name;
  for (const name of Object.keys(settings)) {
    try { settings[name] = localStorage.getItem(key(name)) || settings[name]; } catch { /* storage is switched off */ }
  }
  const set = (name, value) => {
    settings[name] = value;
    try { localStorage.setItem(key(name), value); } catch { /* as above */ }
  };
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // -- looks ---------------------------------------------------------------------------------------------------------

  const showTheme = () => {
    if (settings.theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = settings.theme;
  };
  showTheme();
  const nextTheme = () => {
    const order = ["auto", "light", "dark"];
    set("theme", order[(order.indexOf(settings.theme) + 1) % 3]);
    showTheme();
    label();
  };

  // -- times ---------------------------------------------------------------------------------------------------------

  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const spoken = (ms) => {  // as health.spoken
    if (ms > 0 && ms < 100) return ms + " ms";
    if (ms < 10000) return (Math.max(0, ms) / 1000).toFixed(1).replace(/\.0$/, "") + " s";
    const s = Math.floor(ms / 1000);
    for (let i = 0; i < 3; i++) {
      const [size, unit] = UNITS[i], [small, smallUnit] = UNITS[i + 1];
      if (s < size) continue;
      const rest = Math.floor((s % size) / small);
      return Math.floor(s / size) + " " + unit + (rest && small > 1 ? " " + rest + " " + smallUnit : "");
    }
    return s + " s";
  };
  const pad = (n) => String(n).padStart(2, "0");
  const part = (d, name) => d[(settings.zone === "utc" ? "getUTC" : "get") + name]();
  const day = (d) => pad(part(d, "Month") + 1) + "-" + pad(part(d, "Date"));
  const minute = (d) => pad(part(d, "Hours")) + ":" + pad(part(d, "Minutes"));
  const clock = (d) => minute(d) + ":" + pad(part(d, "Seconds"));
  const stamp = (d) =>
    part(d, "FullYear") + "-" + day(d) + " " + clock(d) + (settings.zone === "utc" ? " UTC" : "");
  // The server's clock counts, not this machine's.
  let ahead = 0;
  const tick = (within = document, every = false) => {
    const now = Date.now() + ahead;
    for (const time of all("time", within)) {
      const at = new Date(time.dateTime), kind = time.dataset, ms = now - at;
      if (isNaN(at)) continue;
      let text = time.textContent;
      if ("ago" in kind) text = ms >= 0 ? spoken(ms) + " ago" : "in " + spoken(-ms);
      else if ("age" in kind) text = spoken(Math.max(0, ms));
      else if (!every) continue;
      else text = "at" in kind ? stamp(at) : "clock" in kind ? clock(at) : "day" in kind ? day(at) : minute(at);
      if (text !== time.textContent) time.textContent = text;
      if (every) time.title = stamp(at);
    }
  };

  // -- fresh pages ---------------------------------------------------------------------------------------------------

  let tag = "", busy = false, timer = 0, failed = false;
  const refresh = async () => {
    if (busy) return;
    busy = true;
    try {
      const headers = tag ? { "If-None-Match": tag } : {};
      const answer = await fetch(location.href, { headers, cache: "no-store", credentials: "same-origin" });
      const at = Date.parse(answer.headers.get("Date"));
      if (Math.abs(at - Date.now()) > 3000) ahead = at - Date.now();
      if (answer.status !== 304) {
        if (!answer.ok || answer.redirected) throw new Error(answer.status);
        tag = answer.headers.get("ETag") || "";
        put(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
      failed = false;
    } catch {
      failed = true;
    }
    busy = false;
    label();
  };
  const plain = (element) => {  // without the words of times, which change by themselves
    const copy = element.cloneNode(true);
    for (const time of all("time", copy)) { time.textContent = ""; time.removeAttribute("title"); }
    for (const box of all("details", copy)) box.removeAttribute("open");
    return copy.innerHTML;
  };
  const put = (page) => {
    for (const old of all("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (!fresh || plain(old) === plain(fresh)) continue;
      const active = document.activeElement;
      const inside = old.contains(active);
      // Somebody types or chooses here.
      if (inside && active.matches("input:not([type=checkbox]),select,textarea")) continue;
      const ticked = new Set(all("input:checked", old).map(nameOf));
      const open = new Set(all("details[open]", old).map((one) => one.id));
      const left = new Map(all(".scroll", old).map((one, i) => [i, one.scrollLeft]));
      const focus = inside && nameOf(active);
      old.replaceChildren(...document.adoptNode(fresh).childNodes);
      for (const box of all("input[type=checkbox]", old)) box.checked = ticked.has(nameOf(box));
      for (const one of all("details", old)) if (open.has(one.id)) one.open = true;
      all(".scroll", old).forEach((one, i) => { one.scrollLeft = left.get(i) || 0; });
      tick(old, true);
      if (focus) all("a,button,input,summary,[tabindex]", old).find((e) => nameOf(e) === focus)?.focus({ preventScroll: true });
    }
    if (page.title) document.title = page.title;
    count();
  };
  const nameOf = (e) => [e.tagName, e.id, e.name, e.value, e.getAttribute("href"),
    e.getAttribute("aria-label"), e.form?.getAttribute("action"), e.closest("details")?.id].join("|");
  const plan = () => {
    clearInterval(timer);
    const seconds = Number(settings.every);
    if (seconds && !document.hidden && document.querySelector("[data-live]")) timer = setInterval(refresh, seconds * 1000);
  };
  document.addEventListener("visibilitychange", () => {
    plan();
    if (!document.hidden && Number(settings.every) && document.querySelector("[data-live]")) refresh();
  });

  // -- ticks ---------------------------------------------------------------------------------------------------------

  const count = () => {
    for (const master of all("input[data-all]")) {
      const boxes = all(`input[name="${master.dataset.all}"]`);
      const on = boxes.filter((box) => box.checked).length;
      master.checked = on > 0 && on === boxes.length;
      master.indeterminate = on > 0 && on < boxes.length;
    }
  };
  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.dataset?.all) for (const one of all(`input[name="${box.dataset.all}"]`)) one.checked = box.checked;
    count();
  });

  // -- the tools -----------------------------------------------------------------------------------------------------

  const make = (tagName, attributes, ...children) => {
    const element = document.createElement(tagName);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const every = make("select", { "aria-label": "Refresh the page" });
  for (const [value, word] of [["0", "⟳ off"], ["2", "⟳ 2 s"], ["5", "⟳ 5 s"], ["15", "⟳ 15 s"], ["60", "⟳ 60 s"]]) {
    every.append(make("option", { value }, word));
  }
  const theme = make("button", { type: "button" });
  const zone = make("button", { type: "button" });
  const ask = make("button", { type: "button", "aria-label": "Keyboard shortcuts" }, "?");
  const stale = make("span", { class: "stale", role: "status" });
  const label = () => {
    theme.textContent = { auto: "◐", light: "○", dark: "●" }[settings.theme];
    theme.setAttribute("aria-label", "Colours: " + settings.theme);
    zone.textContent = settings.zone === "utc" ? "UTC" : "local";
    zone.setAttribute("aria-label", "Times are in " + (settings.zone === "utc" ? "UTC" : "the browser's zone"));
    const words = failed ? "! not fresh" : "";
    if (stale.textContent !== words) stale.textContent = words;
  };
  const turnZone = () => { set("zone", settings.zone === "utc" ? "local" : "utc"); label(); tick(document, true); };

  // -- keys ----------------------------------------------------------------------------------------------------------

  const PAGES = { o: "Overview", j: "Jobs", f: "Failures", q: "Queues", l: "Limits", s: "Schedules", w: "Workers", m: "Mail", y: "System" };
  const dialog = make("dialog", { "aria-labelledby": "keys-title" });
  const help = () => {
    const on = make("input", { type: "checkbox", id: "keys-on" });
    on.checked = settings.keys === "on";
    on.addEventListener("change", () => set("keys", on.checked ? "on" : "off"));
    const list = make("dl", {});
    const lines = [["/", "search"], ["r", "refresh"], ["t", "colours"], ["?", "this list"]];
    for (const [k, page] of Object.entries(PAGES)) lines.push(["g " + k, page]);
    for (const [k, words] of lines) list.append(make("dt", {}, make("kbd", {}, k)), make("dd", {}, words));
    dialog.replaceChildren(
      make("h2", { id: "keys-title" }, "Keyboard shortcuts"), list,
      make("p", {}, on, make("label", { for: "keys-on" }, " Shortcuts are on")),
      make("form", { method: "dialog" }, make("button", {}, "Close")));
    dialog.showModal();
  };
  let after = "", since = 0;
  document.addEventListener("keydown", (event) => {
    if (settings.keys !== "on" || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (event.target.matches("input:not([type=checkbox]),select,textarea,[contenteditable]")) return;
    const go = after === "g" && Date.now() - since < 1500 ? PAGES[event.key] : "";
    const keys = { "/": () => document.querySelector("#filter,#search")?.focus(), r: refresh, t: nextTheme, "?": help };
    const act = go ? () => all("header nav a").find((a) => a.textContent === go)?.click() : keys[event.key];
    after = event.key;
    since = Date.now();
    if (!act) return;
    event.preventDefault();
    act();
  });

  // -- begin ---------------------------------------------------------------------------------------------------------

  const begin = () => {
    const tools = document.getElementById("tools");
    if (!tools) return;
    every.value = settings.every;
    every.addEventListener("change", () => { set("every", every.value); plan(); });
    theme.addEventListener("click", nextTheme);
    zone.addEventListener("click", turnZone);
    ask.addEventListener("click", help);
    tools.append(stale, every, zone, theme, ask);
    tools.hidden = false;
    document.body.append(dialog);
    label();
    tick(document, true);
    setInterval(() => { if (!document.hidden) tick(); }, 1000);
    const url = new URL(location.href);
    if (url.searchParams.has("note")) {  // it is said once
      url.searchParams.delete("note");
      url.searchParams.delete("sign");
      history.replaceState(null, "", url);
    }
    plan();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
