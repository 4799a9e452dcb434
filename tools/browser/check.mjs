// Checks pages of reports: node tools/browser/check.mjs PAGE... ; exit code 1 when one fails.
// HTML by the Nu validator (java), accessibility by axe in headless Chromium (light, dark; 1280 and 420 px; print),
// no horizontal overflow, tables that sort by keyboard, no settings record in print. CHROMIUM names another browser.
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const from = createRequire(path.join(process.cwd(), "build", "browser", "package.json"));
const puppeteer = (await import(from.resolve("puppeteer-core"))).default;
const axe = readFileSync(from.resolve("axe-core/axe.min.js"), "utf8");
const vnu = path.join(path.dirname(from.resolve("vnu-jar/package.json")), "build", "dist", "vnu.jar");
const pages = process.argv.slice(2).map((page) => path.resolve(page));
const shots = process.env.SHOTS;
let failed = 0;

function fail(page, what) {
  failed += 1;
  console.log(`FAIL ${path.basename(path.dirname(page))}/${path.basename(page)}: ${what}`);
}

function browser() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const name of ["chromium", "google-chrome", "chrome"]) {
    try {
      return execFileSync("which", [name]).toString().trim();
    } catch {}
  }
  console.log("No Chromium here. Next: apt-get install chromium, or name one in CHROMIUM.");
  process.exit(1);
}

for (const page of pages) {
  const run = spawnSync("java", ["-jar", vnu, "--format", "json", page], { encoding: "utf8", maxBuffer: 1 << 26 });
  if (run.error) fail(page, `the validator did not run: ${run.error.message}`);
  else for (const one of JSON.parse(run.stderr || '{"messages":[]}').messages)
    // what the page's policy blocks is asked of the browser below: the validator knows no hashes of scripts
    if (!/Content Security Policy/.test(one.message) && (one.type === "error" || one.subType === "warning"))
      fail(page, `HTML line ${one.lastLine}: ${one.message}`);
}

const chromium = await puppeteer.launch({ executablePath: browser(), args: ["--no-sandbox", "--disable-gpu"] });
for (const page of pages) {
  for (const [name, width, scheme, media] of [
    ["laptop", 1280, "light", "screen"], ["dark", 1280, "dark", "screen"], ["phone", 420, "light", "screen"],
    ["print", 794, "light", "print"],
  ]) {
    const tab = await chromium.newPage();
    tab.on("console", (line) => line.type() === "error" && fail(page, `${name}: ${line.text()}`));
    await tab.setViewport({ width, height: 900 });
    const features = [{ name: "prefers-color-scheme", value: scheme }];
    await (await tab.createCDPSession()).send("Emulation.setEmulatedMedia", { media, features });
    await tab.goto(`file://${page}`, { waitUntil: "load" });
    const pictures = await tab.evaluate(() => [...document.images].filter((one) => one.naturalWidth === 0).length);
    if (pictures) fail(page, `${name}: ${pictures} pictures are not shown`);
    await tab.evaluate(axe);
    const found = await tab.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    for (const one of found.violations) fail(page, `${name}: axe ${one.id}: ${one.help} (${one.nodes.length}): ${one.nodes[0].html.slice(0, 160)}`);
    const [wide, room] = await tab.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    if (wide > room) fail(page, `${name}: the page is ${wide} px wide in a window of ${room} px`);
    if (media === "print") {
      const record = await tab.evaluate(() => [...document.querySelectorAll(".record")].some((e) => e.offsetHeight > 0));
      if (record) fail(page, "print: the settings record is printed");
    }
    if (name === "laptop") {
      const sorted = await tab.evaluate(() => {
        const table = document.querySelector("table.results");
        if (!table) return null;
        table.querySelector("thead button").focus();
        return document.activeElement.tagName;
      });
      if (sorted !== null) {
        await tab.keyboard.press("Enter");
        const [state, names] = await tab.evaluate(() => {
          const table = document.querySelector("table.results");
          const names = [...table.tBodies[0].rows].filter((r) => r.cells.length > 1).map((r) => r.cells[0].textContent);
          return [table.querySelector("th").getAttribute("aria-sort"), names];
        });
        const ordered = [...names].sort((a, b) => a.localeCompare(b));
        if (state !== "ascending" || String(names) !== String(ordered)) fail(page, "a table does not sort by keyboard");
      }
    }
    if (shots) {
      mkdirSync(shots, { recursive: true });
      const stem = path.join(shots, `${path.basename(path.dirname(page))}-${name}`);
      await tab.screenshot({ path: `${stem}.png`, fullPage: true });
      if (media === "print") await tab.pdf({ path: `${stem}.pdf` });
    }
    await tab.close();
  }
}
await chromium.close();
console.log(failed ? `${failed} faults in ${pages.length} pages` : `${pages.length} pages pass`);
process.exit(failed ? 1 : 0);
