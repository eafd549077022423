//! The shop as its customers see it: over HTTP, and as the program's exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, reason = "a test ends there")]

mod answers;
mod barrier;
mod deaths;
mod following;
mod open;
mod orders;
mod readme;
mod tour;

/// Runs each of these tests with commands over HTTP, and over Kafka on the embedded broker; all services in one process, or each in its own.
macro_rules! tests {
    ($kind:ident: $($file:ident :: $name:ident)*) => {
        mod $kind {
            mod over_http {
                $(#[tokio::test]
                async fn $name() {
                    crate::$file::$name(crate::open::Shop::open("http", stringify!($kind)).await).await;
                })*
            }
            mod over_kafka {
                $(#[tokio::test]
                async fn $name() {
                    crate::$file::$name(crate::open::Shop::open("kafka", stringify!($kind)).await).await;
                })*
            }
        }
    };
}

tests! { one_process:
    barrier::the_barrier_makes_repeated_late_and_early_commands_harmless
    barrier::the_barrier_stands_before_payment_and_delivery_as_well
    barrier::a_key_that_names_no_step_is_a_bad_request
    barrier::what_an_order_asked_for_is_found_in_the_inbox_by_its_key_over_http_as_well
    orders::one_of_a_hundred_buyers_gets_the_last_item_ten_times_over
    orders::an_order_is_placed_once_for_each_key_at_the_shops_price
    orders::a_customer_is_told_once_what_becomes_of_an_order
    orders::books_that_do_not_balance_exit_with_an_error
    orders::an_order_keeps_the_name_and_the_price_of_its_day
    orders::an_order_that_makes_no_sense_is_refused_and_leaves_nothing
    orders::a_repeat_is_answered_whatever_changed_meanwhile
    orders::products_are_listed_by_category_too
    orders::a_key_that_cannot_be_read_orders_nothing
    orders::an_order_is_placed_though_the_customer_has_hung_up
    following::who_waits_is_answered_when_the_order_has_ended
    following::each_change_of_an_order_is_told_until_its_end_and_none_twice
    following::who_follows_or_waits_does_not_keep_a_shop_from_closing
    answers::every_no_is_a_problem
    answers::a_key_is_its_users_own
    answers::each_service_says_how_it_is
    answers::each_service_answers_as_its_document_says
}

tests! { processes:
    orders::one_of_a_hundred_buyers_gets_the_last_item_ten_times_over
    orders::a_customer_is_told_once_what_becomes_of_an_order
    deaths::orders_survive_when_each_service_is_killed_while_they_are_under_way
    deaths::services_end_with_a_shop_that_is_killed
    deaths::a_product_service_that_does_not_answer_means_no_order
    deaths::a_user_service_that_does_not_answer_holds_up_nobody
}
