// The page of examples/order_page in a real browser, in two of its tabs.

import { chromium } from "playwright-core"
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest"

const server = process.env.SERVER
let browser
let order
let complaints

beforeAll(async () => {
  browser = await chromium.launchPersistentContext(process.env.PROFILE, {
    executablePath: process.env.CHROMIUM,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  })
  browser.setDefaultTimeout(20_000)
})

afterAll(() => browser?.close())

beforeEach(() => {
  order = crypto.randomUUID()
  complaints = []
})

// Over HTTP/1.1 a browser has six connections to a server, and each tab holds one.
afterEach(() => Promise.all(browser.pages().slice(1).map((page) => page.close())))

async function tab() {
  const page = await browser.newPage()
  page.on("pageerror", (error) => complaints.push(String(error)))
  page.on("console", (said) => {
    // The answer 404, for an order that is not open yet, is said by the browser itself.
    if (said.type() === "error" && !said.text().includes("404")) complaints.push(said.text())
  })
  await page.goto(`${server}/orders/${order}`)
  return page
}

async function opened(customer) {
  const page = await tab()
  await page.getByLabel("Whose is it?").fill(customer)
  await page.getByRole("button", { name: "Open the order" }).click()
  await page.getByRole("heading", { name: customer }).waitFor()
  return page
}

const add = (page, item) => page.getByRole("button", { name: new RegExp(`^${item}`) }).click()
const said = (page, name) => page.locator(`#${name}`).innerText()
const history = (page) => page.locator("#history li span").allInnerTexts()
const total = (page, expected) => page.locator("#total", { hasText: expected }).waitFor()
const slider = (page) => page.getByRole("slider", { name: "Time" })

describe("the order page", () => {
  test("shows in each tab what was done in the other, without a reload", async () => {
    const one = await opened("Ada")
    const two = await tab()
    await two.getByRole("heading", { name: "Ada" }).waitFor()
    for (const page of [one, two]) await page.evaluate(() => (window.stayed = true))

    await add(one, "Tea")
    await total(two, "2.50")
    await add(two, "Coffee")
    await total(one, "5.40")
    await one.getByRole("button", { name: "One Tea less" }).click()
    await total(two, "2.90")
    await two.getByRole("button", { name: "Pay" }).click()
    await one.locator("#status", { hasText: "paid" }).waitFor()

    expect(await history(one)).toEqual(await history(two))
    expect(await history(one)).toEqual([
      "opened for Ada",
      "Tea added",
      "Coffee added",
      "Tea removed",
      "paid",
    ])
    for (const page of [one, two]) expect(await page.evaluate(() => window.stayed)).toBe(true)
    expect(complaints).toEqual([])
  })

  test("has the past under its slider, while the present goes on", async () => {
    const page = await opened("Ada")
    await add(page, "Tea")
    await total(page, "2.50")
    await add(page, "Coffee")
    await total(page, "5.40")

    await slider(page).press("ArrowLeft")
    await total(page, "2.50")
    expect(await said(page, "shown")).not.toBe("now")
    expect(await page.getByRole("button", { name: "Pay" }).isDisabled()).toBe(true)

    // What happens now shows in the history, and the moment stays the chosen one.
    const other = await tab()
    await other.getByRole("heading", { name: "Ada" }).waitFor()
    await add(other, "Sandwich")
    await page.locator("#history li", { hasText: "Sandwich added" }).waitFor()
    expect(await said(page, "total")).toBe("2.50")
    await slider(page).press("Home")
    await total(page, "0.00")

    await page.getByRole("button", { name: "Back to now" }).click()
    await total(page, "11.00")
    expect(await said(page, "shown")).toBe("now")
    await add(page, "Tea")
    await total(page, "13.50")
    expect(complaints).toEqual([])
  })

  test("is the same after a reload", async () => {
    const page = await opened("Grace")
    await add(page, "Apple cake")
    await total(page, "4.20")
    await page.reload()
    await total(page, "4.20")
    await page.locator("#connection", { hasText: "live" }).waitFor()
    expect(await history(page)).toEqual(["opened for Grace", "Apple cake added"])
    expect(complaints).toEqual([])
  })

  test("says why a command was refused, and changes nothing", async () => {
    const page = await opened("Ada")
    await page.getByRole("button", { name: "Pay" }).click()
    await page.getByRole("alert").filter({ hasText: "nothing to pay" }).waitFor()
    expect(await history(page)).toEqual(["opened for Ada"])
  })
})
