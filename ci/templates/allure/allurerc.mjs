// Allure 3: `npx allure generate --config allurerc.mjs allure-results` writes one file, allure-report/index.html, that
// opens without a web server. Its title is the verdict. Allure 2 finds categories.json and executor.json by itself, Allure 3
// takes categories and title from here: the same files. history.jsonl, kept between runs, says since when a host is blocked.
import { existsSync, readFileSync } from "node:fs";

const results = process.env.ALLURE_RESULTS ?? "allure-results";
const read = (name, otherwise) =>
  existsSync(`${results}/${name}`) ? JSON.parse(readFileSync(`${results}/${name}`, "utf8")) : otherwise;

export default {
  name: read("executor.json", {}).reportName ?? "GPU discovery",
  output: "allure-report",
  historyPath: "history.jsonl",
  categories: read("categories.json", []),
  hideLabels: ["suite", "framework", "language"], // the tree says the host; severity stays: the head of a result shows it
  plugins: { awesome: { options: { singleFile: true } } },
};
